//! Connection strings: what a person copies from the hub into a device or a tool.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use drover_core::device::Key;
use drover_core::ids::DeviceId;

/// Host, who, and with which key. Items that Drover has no use for are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionString {
    /// May carry a port.
    pub host_name: String,
    pub subject: Subject,
    pub key: Key,
}

/// Whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Device(DeviceId),
    Policy(String),
}

/// Why a text is no connection string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnectionString {
    #[error("an item without an equals sign: write Name=value;Name=value")]
    NoEqualsSign,
    #[error("HostName is missing")]
    NoHostName,
    #[error("write either DeviceId (with ModuleId, for a module) or SharedAccessKeyName")]
    NoSubject,
    #[error("DeviceId or ModuleId is not an id of a device or a module")]
    BadId,
    #[error("SharedAccessKey must be base64 of 16 to 64 bytes")]
    BadKey,
}

impl std::str::FromStr for ConnectionString {
    type Err = InvalidConnectionString;

    fn from_str(text: &str) -> Result<Self, InvalidConnectionString> {
        let (mut host_name, mut policy, mut key) = (None, None, None);
        let (mut device, mut module) = (None, None);
        for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, value) =
                item.split_once('=').ok_or(InvalidConnectionString::NoEqualsSign)?;
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "hostname" => &mut host_name,
                "deviceid" => &mut device,
                "moduleid" => &mut module,
                "sharedaccesskeyname" => &mut policy,
                "sharedaccesskey" => &mut key,
                _ => continue,
            };
            *place = Some(value.trim().to_owned());
        }
        let subject = match (device, module, policy) {
            (Some(device), module, None) => Subject::Device(identity(&device, module.as_deref())?),
            (None, None, Some(policy)) => Subject::Policy(policy),
            _ => return Err(InvalidConnectionString::NoSubject),
        };
        Ok(Self {
            host_name: host_name.ok_or(InvalidConnectionString::NoHostName)?,
            subject,
            key: key
                .and_then(|key| STANDARD.decode(key).ok())
                .and_then(Key::new)
                .ok_or(InvalidConnectionString::BadKey)?,
        })
    }
}

fn identity(device: &str, module: Option<&str>) -> Result<DeviceId, InvalidConnectionString> {
    let bad_id = |_| InvalidConnectionString::BadId;
    let device: DeviceId = device.parse().map_err(bad_id)?;
    let Some(module) = module else { return Ok(device) };
    Ok(device.module(&module.parse().map_err(bad_id)?))
}

/// Shows the key: this text is a secret.
impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostName={};", self.host_name)?;
        match &self.subject {
            Subject::Device(device) => {
                let (device, module) = device.names();
                write!(f, "DeviceId={device};")?;
                if let Some(module) = module {
                    write!(f, "ModuleId={module};")?;
                }
            }
            Subject::Policy(policy) => write!(f, "SharedAccessKeyName={policy};")?,
        }
        write!(f, "SharedAccessKey={}", STANDARD.encode(self.key.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_survives_the_way_there_and_back() {
        for text in [
            "HostName=localhost:8883;DeviceId=a=b@c;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==",
            "HostName=hub;DeviceId=pump;ModuleId=a;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==",
            "HostName=hub;SharedAccessKeyName=service;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==",
        ] {
            let parsed: ConnectionString = text.parse().expect("well formed");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_text_that_lacks_something_says_what() {
        let refused = |text: &str| text.parse::<ConnectionString>().expect_err("refused");
        assert_eq!(refused("HostName"), InvalidConnectionString::NoEqualsSign);
        assert_eq!(refused("HostName=h;DeviceId=d"), InvalidConnectionString::BadKey);
        assert_eq!(
            refused("HostName=h;DeviceId=d;SharedAccessKey=AAAA"),
            InvalidConnectionString::BadKey
        );
        assert_eq!(refused("HostName=h;SharedAccessKey=x"), InvalidConnectionString::NoSubject);
        let of = |who| refused(&format!("HostName=h;{who};SharedAccessKey=x"));
        assert_eq!(of("ModuleId=m"), InvalidConnectionString::NoSubject);
        assert_eq!(of("ModuleId=m;SharedAccessKeyName=p"), InvalidConnectionString::NoSubject);
        assert_eq!(of("DeviceId=a/b"), InvalidConnectionString::BadId);
    }
}
