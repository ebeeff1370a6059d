//! Shared access signatures: their text, their signature, what they are good for (`spec/mqtt.md` section 3).
//!
//! The signature covers the text of `sr` exactly as the client wrote it, because clients differ in what they escape and
//! in the case of hex digits: nothing is decoded and encoded again before it is checked.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use drover_core::device::Key;
use drover_core::ids::DeviceId;
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

const SCHEME: &str = "SharedAccessSignature ";

/// The longest token that is looked at: an id of 128 characters escaped twice, a host name and a policy name fit in
/// a quarter of it.
const TOKEN_BYTES_MAX: usize = 4096;

/// A parsed token. What it says is not believed before a key has signed it.
#[derive(Debug)]
pub struct Token<'a> {
    resource: &'a str,
    signature: Vec<u8>,
    expires: &'a str,
    expires_s: u64,
    policy: Option<Cow<'a, str>>,
}

/// What a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resource {
    Hub,
    AllDevices,
    /// A device, or one of its modules. The segments of the ids as they were after decoding the resource once: some clients
    /// escape an id before they escape the whole, so that it may still be escaped.
    Identity {
        device: String,
        module: Option<String>,
    },
}

impl<'a> Token<'a> {
    /// `None` if it is no token, or has a field twice: which of the two was signed must not be a question.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (mut sr, mut sig, mut se, mut skn) = (None, None, None, None);
        for field in text.strip_prefix(SCHEME)?.split('&') {
            let (name, value) = field.split_once('=')?;
            let place = match name {
                "sr" => &mut sr,
                "sig" => &mut sig,
                "se" => &mut se,
                "skn" => &mut skn,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        let expires = se?;
        Some(Self {
            resource: sr?,
            signature: decode_signature(sig?)?,
            expires,
            expires_s: parse_expiry(expires)?,
            policy: decode(skn.unwrap_or_default())
                .map(|name| (!name.is_empty()).then_some(name))?,
        })
    }

    /// The policy whose key is said to have signed; `None` for a device's own key.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    pub fn expires_s(&self) -> u64 {
        self.expires_s
    }

    /// What the token opens, if that is at this hub. Ignores a scheme, a port, a slash at the end and the case of the
    /// host name.
    pub(super) fn resource(&self, host_names: &[String]) -> Option<Resource> {
        let decoded = decode(self.resource)?;
        let path = decoded.split_once("://").map_or(&*decoded, |(_, rest)| rest);
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        if !is_own_host(segments.next()?, host_names) {
            return None;
        }
        let rest: Vec<&str> = segments.take(PATH_SEGMENTS_MAX + 1).collect();
        let identity = |device: &str, module: Option<&str>| Resource::Identity {
            device: device.to_owned(),
            module: module.map(str::to_owned),
        };
        match rest[..] {
            [] => Some(Resource::Hub),
            ["devices"] => Some(Resource::AllDevices),
            ["devices", device] => Some(identity(device, None)),
            ["devices", device, "modules", module] => Some(identity(device, Some(module))),
            _ => None,
        }
    }

    /// Whether either key made the signature. All four computations are always done and compared in constant time, so
    /// that time tells nothing about which of them failed where.
    pub(super) fn is_signed_by_either(&self, primary: &[u8], secondary: &[u8]) -> bool {
        let decoded = decode(self.resource).unwrap_or_default();
        let mut signed = Choice::from(0);
        for key in [primary, secondary] {
            for resource in [self.resource, &decoded] {
                signed |= mac(resource, self.expires, key).ct_eq(&self.signature);
            }
        }
        signed.into()
    }
}

/// `devices`, an id, `modules`, an id.
const PATH_SEGMENTS_MAX: usize = 4;

impl Resource {
    /// Whether it names this device, or this module, and nothing wider.
    pub(super) fn is_exactly(&self, id: &DeviceId) -> bool {
        match (self, id.names()) {
            (Self::Identity { device, module: None }, (own, None)) => is_id(device, own),
            (Self::Identity { device, module: Some(module) }, (own, Some(own_module))) => {
                is_id(device, own) && is_id(module, own_module)
            }
            (Self::Identity { .. } | Self::Hub | Self::AllDevices, _) => false,
        }
    }

    /// Whether the device or module stands under it, by whole segments.
    pub(super) fn covers(&self, id: &DeviceId) -> bool {
        match self {
            Self::Hub | Self::AllDevices => true,
            Self::Identity { device, module: None } => is_id(device, id.names().0),
            Self::Identity { module: Some(_), .. } => self.is_exactly(id),
        }
    }
}

/// Whether a segment is this id, as it is or escaped once more.
fn is_id(segment: &str, id: &str) -> bool {
    segment == id || decode(segment).is_some_and(|segment| segment == id)
}

/// Whether the hub answers to this name, compared without case and port.
pub fn is_own_host(host: &str, host_names: &[String]) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    host_names.iter().any(|name| name.eq_ignore_ascii_case(host) || name.eq_ignore_ascii_case(bare))
}

/// Makes a token for `resource`, which is escaped whole, as the Python and Node SDKs do.
pub fn sign(resource: &str, key: &Key, policy: Option<&str>, expires_s: u64) -> String {
    let resource = percent_encode(resource);
    let expires = expires_s.to_string();
    let signature = STANDARD.encode(mac(&resource, &expires, key.as_bytes()));
    let signature = percent_encode(&signature);
    let mut token = format!("{SCHEME}sr={resource}&sig={signature}&se={expires}");
    if let Some(policy) = policy {
        token.push_str("&skn=");
        token.push_str(&percent_encode(policy));
    }
    token
}

pub(super) fn percent_encode(text: &str) -> String {
    const ESCAPED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn mac(resource: &str, expires: &str, key: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(resource.as_bytes());
    mac.update(b"\n");
    mac.update(expires.as_bytes());
    mac.finalize().into_bytes().into()
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

fn decode_signature(text: &str) -> Option<Vec<u8>> {
    let text = decode(text)?;
    STANDARD.decode(&*text).or_else(|_| STANDARD_NO_PAD.decode(&*text)).ok()
}

/// Seconds, with a fraction that is cut off.
fn parse_expiry(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(b"0123456789abcdef".to_vec()).expect("16 bytes")
    }

    fn hosts() -> Vec<String> {
        vec!["hub.example.com".into(), "localhost".into()]
    }

    fn of(device: &str, module: Option<&str>) -> Resource {
        Resource::Identity { device: device.to_owned(), module: module.map(str::to_owned) }
    }

    fn resource(text: &str) -> Option<Resource> {
        let token = format!("{SCHEME}sr={text}&sig=AAAA&se=1");
        Token::parse(&token).expect("well formed").resource(&hosts())
    }

    #[test]
    fn a_signature_equals_the_one_that_the_formula_gives_elsewhere() {
        // printf 'hub.example.com%%2Fdevices%%2Fd1\n1700000000' | openssl dgst -sha256 -mac HMAC \
        //   -macopt key:0123456789abcdef -binary | base64
        let token = sign("hub.example.com/devices/d1", &key(), None, 1_700_000_000);
        assert_eq!(
            token,
            "SharedAccessSignature sr=hub.example.com%2Fdevices%2Fd1\
             &sig=PGkgrNnTYIAICt%2BnnapLwQoccUDqGjrhOE7t4oiHfso%3D&se=1700000000"
        );
    }

    #[test]
    fn what_was_signed_is_the_text_as_it_was_written() {
        for written in ["hub.example.com%2fdevices%2fd1", "hub.example.com/devices/d1"] {
            let signature = STANDARD.encode(mac(written, "99", key().as_bytes()));
            let token = format!("{SCHEME}sig={signature}&se=99&sr={written}");
            let token = Token::parse(&token).expect("well formed");
            assert!(token.is_signed_by_either(b"another", key().as_bytes()), "{written}");
            assert!(!token.is_signed_by_either(b"another", b"and another"), "{written}");
        }
    }

    #[test]
    fn a_signature_over_the_decoded_resource_is_taken_too() {
        let signature = STANDARD.encode(mac("localhost/devices/d1", "99", key().as_bytes()));
        let token = format!("{SCHEME}sr=localhost%2Fdevices%2Fd1&sig={signature}&se=99");
        let token = Token::parse(&token).expect("well formed");
        assert!(token.is_signed_by_either(key().as_bytes(), b""));
    }

    #[test]
    fn resources_are_read_by_whole_segments() {
        let device = |id: &str| Some(of(id, None));
        let cases = [
            ("hub.example.com", Some(Resource::Hub)),
            ("HUB.example.COM%3A8883%2F", Some(Resource::Hub)),
            ("sb%3A%2F%2Fhub.example.com%2F", Some(Resource::Hub)),
            ("localhost%3A8443%2Fdevices%2Fd1", device("d1")),
            ("hub.example.com/devices", Some(Resource::AllDevices)),
            ("hub.example.com%2Fdevices%2Fa%2525b", device("a%25b")),
            ("hub.example.com%2Fdevices%2Fd1%2Fmodules%2Fm", Some(of("d1", Some("m")))),
            ("hub.example.com%2Fdevices%2Fd1%2Fmodules", None),
            ("hub.example.com%2Fdevices%2Fd1%2Fmodulesx%2Fm", None),
            ("hub.example.com%2Fdevices%2Fd1%2Fmodules%2Fm%2Fx", None),
            ("hub.example.com%2Fdevicesx%2Fd1", None),
            ("other.example.com%2Fdevices%2Fd1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(resource(text), expected, "{text}");
        }
    }

    #[test]
    fn a_device_is_not_covered_by_a_prefix_of_its_name() {
        let device = |id: &str| id.parse::<DeviceId>().expect("a legal id");
        assert!(!of("a", None).covers(&device("ab")));
        assert!(of("a", None).covers(&device("a")));
        assert!(of("a%25b", None).is_exactly(&device("a%b")), "escaped twice");
        assert!(of("a%25b", None).is_exactly(&device("a%25b")), "escaped once");
        assert!(!Resource::Hub.is_exactly(&device("a")));
    }

    #[test]
    fn a_module_is_covered_by_its_device_and_named_by_itself_alone() {
        let device: DeviceId = "a".parse().expect("a legal id");
        let module = device.module(&"m%1".parse().expect("a legal id"));
        assert!(of("a", None).covers(&module) && !of("a", None).is_exactly(&module));
        for name in ["m%1", "m%251"] {
            assert!(of("a", Some(name)).is_exactly(&module), "{name}");
            assert!(!of("a", Some(name)).covers(&device), "{name}");
        }
        for (device, name) in [("a", "m"), ("b", "m%1")] {
            assert!(!of(device, Some(name)).covers(&module), "{device} {name}");
        }
    }

    #[test]
    fn malformed_tokens_are_none() {
        for text in [
            "",
            "SharedAccessSignature",
            "SharedAccessSignature sr=a&sig=AAAA",
            "SharedAccessSignature sr=a&se=1",
            "SharedAccessSignature sig=AAAA&se=1",
            "SharedAccessSignature sr=a&sig=%&se=1",
            "SharedAccessSignature sr=a&sig=AAAA&se=-1",
            "SharedAccessSignature sr=a&sig=AAAA&se=",
            "SharedAccessSignature sr=a&sig=AAAA&se=18446744073709551616",
            "SharedAccessSignature sr=a&sr=b&sig=AAAA&se=1",
            "sharedaccesssignature sr=a&sig=AAAA&se=1",
        ] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
        let long = format!("{SCHEME}sr={}&sig=AAAA&se=1", "a".repeat(TOKEN_BYTES_MAX));
        assert!(Token::parse(&long).is_none());
    }

    #[test]
    fn an_expiry_may_have_a_fraction() {
        let token =
            Token::parse("SharedAccessSignature sr=a&sig=AAAA&se=17.9").expect("well formed");
        assert_eq!(token.expires_s(), 17);
    }
}
