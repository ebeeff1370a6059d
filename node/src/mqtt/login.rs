//! CONNECT as a claim: which device or module wants to connect, and what it brings to prove it (`spec/mqtt.md` section 2).
//!
//! Nothing is believed yet; `identity` checks the claim.

use drover_core::change::Message;
use drover_core::ids::DeviceId;
use mqtt_protocol_core::mqtt::packet::Qos;
use mqtt_protocol_core::mqtt::packet::v3_1_1::Connect;
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;
use percent_encoding::percent_decode_str;

use super::properties::Properties;
use super::topics::{Publication, publication};
use crate::identity::token::is_own_host;

/// Clients from before this version of the API are not served.
const API_VERSION_MIN: &str = "2016-11-14";

/// What a CONNECT claims.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub device: DeviceId,
    pub password: Vec<u8>,
    pub clean_session: bool,
}

/// Without the password, which is a secret (S-11).
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("device", &self.device)
            .field("clean_session", &self.clean_session)
            .finish_non_exhaustive()
    }
}

/// What a CONNECT sets for the time of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub keep_alive_s: u16,
    /// The digital-twin model that the device says it implements.
    pub model_id: Option<Box<str>>,
    pub will: Option<Message>,
}

/// Reads a CONNECT, or says which return code refuses it.
pub fn read(connect: &Connect, host_names: &[String]) -> Result<(Login, Terms), ConnectReturnCode> {
    let user = connect.user_name().and_then(UserName::parse);
    let user = user.ok_or(ConnectReturnCode::BadUserNameOrPassword)?;
    if !is_own_host(user.host, host_names) {
        return Err(ConnectReturnCode::BadUserNameOrPassword);
    }
    let device = claimed_device(connect.client_id(), &user)?;
    let query = Query::parse(user.query).ok_or(ConnectReturnCode::BadUserNameOrPassword)?;
    let will = read_will(connect, &device, query.model_id.as_deref())?;
    let login = Login {
        device,
        password: connect.password().unwrap_or_default().to_vec(),
        clean_session: connect.clean_session(),
    };
    Ok((login, Terms { keep_alive_s: connect.keep_alive(), model_id: query.model_id, will }))
}

fn claimed_device(client_id: &str, user: &UserName<'_>) -> Result<DeviceId, ConnectReturnCode> {
    let named = match user.module {
        None => client_id == user.device,
        Some(module) => client_id.split_once('/') == Some((user.device, module)),
    };
    if !named {
        return Err(ConnectReturnCode::IdentifierRejected);
    }
    let device: DeviceId =
        user.device.parse().map_err(|_| ConnectReturnCode::IdentifierRejected)?;
    let Some(module) = user.module else { return Ok(device) };
    let module = module.parse().map_err(|_| ConnectReturnCode::IdentifierRejected)?;
    Ok(device.module(&module))
}

/// The will as the message that it will be. It goes to the device's own telemetry topic, or the connection is refused.
fn read_will(
    connect: &Connect,
    device: &DeviceId,
    model_id: Option<&str>,
) -> Result<Option<Message>, ConnectReturnCode> {
    let Some(topic) = connect.will_topic() else { return Ok(None) };
    let Some(Publication::Telemetry { bag }) = publication(topic, device) else {
        return Err(ConnectReturnCode::NotAuthorized);
    };
    if connect.will_qos() == Qos::ExactlyOnce {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    let mut properties = Properties::parse(bag).map_err(|_| ConnectReturnCode::NotAuthorized)?;
    properties.add_application("iothub-MessageType", Some("Will".into()));
    if connect.will_retain() {
        properties.add_application("mqtt-retain", Some("true".into()));
    }
    if let Some(model_id) = model_id {
        properties.add_system("dt-dataschema", model_id.to_owned());
    }
    let message = properties.with_body(connect.will_payload().unwrap_or_default());
    message.map(Some).map_err(|_| ConnectReturnCode::NotAuthorized)
}

/// `{host}/{device}/?{query}` and the older forms of it.
#[derive(Debug, PartialEq, Eq)]
struct UserName<'a> {
    host: &'a str,
    device: &'a str,
    module: Option<&'a str>,
    query: &'a str,
}

impl<'a> UserName<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (host, rest) = text.split_once('/')?;
        // The last one, because an id may contain a question mark; values are escaped.
        let (path, query) = rest.rsplit_once("/?").unwrap_or_else(|| split_old_query(rest));
        let (device, module) = match path.split_once('/') {
            None => (path, None),
            Some((device, module)) => (device, Some(module)),
        };
        let is_segment = |text: &str| !text.is_empty() && !text.contains('/');
        if !is_segment(device) || module.is_some_and(|module| !is_segment(module)) {
            return None;
        }
        Some(Self { host, device, module, query })
    }
}

/// Before 2016 the query had no question mark.
fn split_old_query(rest: &str) -> (&str, &str) {
    match rest.rsplit_once('/') {
        Some((path, last)) if last.starts_with("api-version=") => (path, last),
        _ => (rest, ""),
    }
}

struct Query {
    model_id: Option<Box<str>>,
}

impl Query {
    /// `None` if the version of the API is not one that is served. Unknown items are noise.
    fn parse(query: &str) -> Option<Self> {
        let mut model_id = None;
        for item in query.split('&') {
            match item.split_once('=') {
                Some(("api-version", version)) if !is_served(version) => return None,
                Some(("model-id", id)) => {
                    let id = percent_decode_str(id).decode_utf8().ok()?;
                    model_id = Some(id.as_ref().into());
                }
                _ => {}
            }
        }
        Some(Self { model_id })
    }
}

/// A date, perhaps with a suffix like `-preview`. Dates in this form are in order as texts.
fn is_served(version: &str) -> bool {
    let Some(date) = version.get(..API_VERSION_MIN.len()) else { return false };
    let is_date = date.bytes().zip(API_VERSION_MIN.bytes()).all(|(byte, model)| match model {
        b'-' => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    is_date && date >= API_VERSION_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(client_id: &str, user_name: &str) -> Connect {
        let builder = Connect::builder().client_id(client_id).expect("a string");
        let builder = builder.user_name(user_name).expect("a string");
        builder.password(b"token".to_vec()).expect("bytes").build().expect("complete")
    }

    fn read_it(connect: &Connect) -> Result<(Login, Terms), ConnectReturnCode> {
        read(connect, &["hub".to_owned()])
    }

    fn code(client_id: &str, user_name: &str) -> Option<ConnectReturnCode> {
        read_it(&connect(client_id, user_name)).err()
    }

    #[test]
    fn user_names_come_in_these_forms() {
        for (client_id, user_name) in [
            ("d", "hub/d/?api-version=2021-04-12&DeviceClientType=py%2F1%20%28x%29"),
            ("d", "HUB:8883/d/?api-version=2020-10-01-preview"),
            ("d", "hub/d/api-version=2016-11-14"),
            ("d", "hub/d"),
            ("d", "hub/d/?"),
            ("a?b", "hub/a?b/?api-version=2019-10-01"),
            ("?", "hub/?/?api-version=2019-10-01"),
            ("a%2Fb", "hub/a%2Fb/?auth-chain=x"),
            ("d/m", "hub/d/m/?api-version=2021-04-12"),
            ("d/m", "hub/d/m/api-version=2016-11-14"),
        ] {
            assert_eq!(code(client_id, user_name), None, "{user_name}");
        }
    }

    #[test]
    fn a_module_claims_its_own_name() {
        let (login, _) =
            read_it(&connect("d/$m", "hub/d/$m/?api-version=2019-10-01")).expect("own");
        assert_eq!(login.device.names(), ("d", Some("$m")));
    }

    #[test]
    fn a_claim_that_is_not_consistent_is_refused() {
        use ConnectReturnCode::{BadUserNameOrPassword, IdentifierRejected};
        for (client_id, user_name, expected) in [
            ("d", "", BadUserNameOrPassword),
            ("d", "hub", BadUserNameOrPassword),
            ("d", "hub/", BadUserNameOrPassword),
            ("d", "hub//?api-version=2021-04-12", BadUserNameOrPassword),
            ("d", "elsewhere/d", BadUserNameOrPassword),
            ("d", "hub/d/?api-version=2016-11-13", BadUserNameOrPassword),
            ("d", "hub/d/?api-version=latest", BadUserNameOrPassword),
            ("d", "hub/d/m/x", BadUserNameOrPassword),
            ("e", "hub/d", IdentifierRejected),
            ("D", "hub/d", IdentifierRejected),
            ("", "hub/d", IdentifierRejected),
            ("é", "hub/é", IdentifierRejected),
            ("d", "hub/d/m", IdentifierRejected),
            ("d/m", "hub/d", IdentifierRejected),
            ("d", "hub/d/m/?api-version=2021-04-12", IdentifierRejected),
            ("d/m/x", "hub/d/m/?api-version=2021-04-12", IdentifierRejected),
            ("d/é", "hub/d/é/?api-version=2021-04-12", IdentifierRejected),
        ] {
            assert_eq!(code(client_id, user_name), Some(expected), "{user_name}");
        }
    }

    #[test]
    fn a_will_goes_to_the_devices_own_telemetry_or_nowhere() {
        let with_will = |topic: &str, qos| {
            let builder = Connect::builder().client_id("d").expect("a string");
            let builder = builder.user_name("hub/d").expect("a string");
            let builder = builder.will_message(topic, b"gone".to_vec(), qos, true);
            read_it(&builder.expect("a will").build().expect("complete"))
        };
        let (_, terms) = with_will("devices/d/messages/events/a=b", Qos::AtLeastOnce).expect("own");
        let expected = Properties::parse("a=b&iothub-MessageType=Will&mqtt-retain=true");
        let expected = expected.expect("valid").with_body(b"gone").expect("fits");
        assert_eq!(terms.will, Some(expected));
        for (topic, qos) in [
            ("devices/e/messages/events/", Qos::AtLeastOnce),
            ("$iothub/twin/GET/?$rid=1", Qos::AtMostOnce),
            ("devices/d/messages/events/", Qos::ExactlyOnce),
            ("devices/d/messages/events/a=%FF", Qos::AtMostOnce),
        ] {
            let refused = with_will(topic, qos).expect_err("refused");
            assert_eq!(refused, ConnectReturnCode::NotAuthorized, "{topic}");
        }
    }

    #[test]
    fn the_model_is_read_from_the_user_name() {
        let connect = connect("d", "hub/d/?model-id=dtmi%3Acom%3AThermostat%3B1");
        let (_, terms) = read_it(&connect).expect("valid");
        assert_eq!(terms.model_id.as_deref(), Some("dtmi:com:Thermostat;1"));
    }

    #[test]
    fn the_password_does_not_show() {
        let (login, _) = read_it(&connect("d", "hub/d")).expect("valid");
        assert!(!format!("{login:?}").contains("token"));
        assert!(!format!("{login:?}").contains("116, 111"));
    }
}
