//! Azure IoT Hub's topics as typed requests: what a device may publish to and subscribe to (`spec/mqtt.md` section 7).
//!
//! A topic is compared with the id that the connection has proved, by whole segments and byte for byte: ids are not
//! escaped in topics, and may contain `%`, `?` and `$`. What is not in the tables closes the connection (P5). A filter
//! names a channel of the connection itself; none is ever matched against a topic.

use drover_core::device::Channel;
use drover_core::ids::{CallId, DeviceId, Version};
use drover_core::method::MethodName;
use drover_core::mutants::{Mutation, is_planted};

/// The longest request id that is echoed. SDKs use UUIDs and small integers.
const REQUEST_ID_BYTES_MAX: usize = 1024;

/// What a device asks for by publishing to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication<'a> {
    Telemetry {
        bag: &'a str,
    },
    ReadTwin {
        request_id: &'a str,
    },
    PatchReported {
        request_id: &'a str,
        expected: Option<Version>,
    },
    /// `call` is `None` if the hub has made no call that would be answered so.
    MethodResponse {
        status: i32,
        call: Option<CallId>,
    },
}

/// What the topic of a PUBLISH means; `None` if this device may not publish to it.
pub fn publication<'a>(topic: &'a str, device: &DeviceId) -> Option<Publication<'a>> {
    match topic.strip_prefix("$iothub/") {
        Some(rest) => own_channel(rest),
        None => telemetry(topic, device),
    }
}

fn telemetry<'a>(topic: &'a str, device: &DeviceId) -> Option<Publication<'a>> {
    let rest = below_own(topic, device)?.strip_prefix("/messages/events")?;
    match rest.strip_prefix('/') {
        Some(bag) => Some(Publication::Telemetry { bag }),
        None => rest.is_empty().then_some(Publication::Telemetry { bag: "" }),
    }
}

/// What stands in a topic after the path of a device, or of a module. A device's own path is no part of its modules'.
fn below_own<'a>(topic: &'a str, device: &DeviceId) -> Option<&'a str> {
    let (device, module) = device.names();
    let rest = topic.strip_prefix("devices/")?.strip_prefix(device)?;
    if is_planted(Mutation::AccessByPrefix) {
        return rest.find('/').map(|end| &rest[end..]);
    }
    match module {
        None => Some(rest),
        Some(module) => rest.strip_prefix("/modules/")?.strip_prefix(module),
    }
}

/// The path of a device, or of a module, as it stands in topics and addresses.
pub(super) fn path(device: &DeviceId) -> String {
    match device.names() {
        (device, None) => format!("devices/{device}"),
        (device, Some(module)) => format!("devices/{device}/modules/{module}"),
    }
}

fn own_channel(rest: &str) -> Option<Publication<'_>> {
    if let Some(query) = rest.strip_prefix("twin/GET/?") {
        let (request_id, _) = parse_query(query)?;
        return Some(Publication::ReadTwin { request_id });
    }
    if let Some(query) = rest.strip_prefix("twin/PATCH/properties/reported/?") {
        let (request_id, expected) = parse_query(query)?;
        return Some(Publication::PatchReported { request_id, expected });
    }
    let (status, query) = rest.strip_prefix("methods/res/")?.split_once("/?")?;
    let status = status.parse().ok()?;
    let (request_id, _) = parse_query(query)?;
    Some(Publication::MethodResponse { status, call: call_id(request_id) })
}

/// `$rid`, which must be there, and `$version`; the rest is for later.
fn parse_query(query: &str) -> Option<(&str, Option<Version>)> {
    let (mut request_id, mut version) = (None, None);
    for item in query.split('&') {
        match item.split_once('=') {
            Some(("$rid", text)) => request_id = Some(text),
            Some(("$version", text)) => version = Some(Version::new(text.parse().ok()?)),
            _ => {}
        }
    }
    let request_id = request_id.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX)?;
    Some((request_id, version))
}

/// The call that a request id of ours names.
fn call_id(request_id: &str) -> Option<CallId> {
    let id = u64::from_str_radix(request_id, 16).ok()?;
    (format!("{id:x}") == request_id).then_some(CallId::new(id))
}

/// What a filter subscribes to; `None` for a filter that is refused.
pub fn channel(filter: &str, device: &DeviceId) -> Option<Channel> {
    match filter {
        "$iothub/twin/res/#" => Some(Channel::TwinResponses),
        "$iothub/twin/PATCH/properties/desired/#" => Some(Channel::DesiredPatches),
        "$iothub/methods/POST/#" => Some(Channel::Methods),
        _ => match below_own(filter, device)? {
            "/messages/devicebound/#" => Some(Channel::Commands),
            // The SDKs for C and C# mean commands and inputs by it, and a hub has nothing for inputs.
            "/#" if device.is_module() => Some(Channel::Commands),
            "/inputs/#" if device.is_module() => Some(Channel::Inputs),
            _ => None,
        },
    }
}

/// Where the answer to a twin request goes. SDKs want three digits and `$rid` first.
pub fn twin_response(status: u16, request_id: &str, version: Option<Version>) -> String {
    match version {
        None => format!("$iothub/twin/res/{status:03}/?$rid={request_id}"),
        Some(version) => {
            format!("$iothub/twin/res/{status:03}/?$rid={request_id}&$version={version}")
        }
    }
}

/// Where the call of a method goes. SDKs take everything after `POST/` apart, so `$rid` is all that follows the name.
pub fn method_call(name: &MethodName, call: CallId) -> String {
    format!("$iothub/methods/POST/{name}/?$rid={:x}", call.get())
}

/// Where a desired patch goes.
pub fn desired_patch(version: Version) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        text.parse().expect("a legal id")
    }

    #[test]
    fn a_device_publishes_to_these_topics() {
        use Publication::{MethodResponse, PatchReported, ReadTwin, Telemetry};
        let cases = [
            ("devices/d1/messages/events/", Telemetry { bag: "" }),
            ("devices/d1/messages/events", Telemetry { bag: "" }),
            ("devices/d1/messages/events/a=b&c", Telemetry { bag: "a=b&c" }),
            ("$iothub/twin/GET/?$rid=7", ReadTwin { request_id: "7" }),
            ("$iothub/twin/GET/?$rid=", ReadTwin { request_id: "" }),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=a%20b",
                PatchReported { request_id: "a%20b", expected: None },
            ),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=x&$version=12",
                PatchReported { request_id: "x", expected: Some(Version::new(12)) },
            ),
            (
                "$iothub/methods/res/200/?$rid=1a",
                MethodResponse { status: 200, call: Some(CallId::new(26)) },
            ),
            (
                "$iothub/methods/res/-1/?$rid=0",
                MethodResponse { status: -1, call: Some(CallId::new(0)) },
            ),
            // No request id of ours: it answers no call.
            ("$iothub/methods/res/0/?$rid=01", MethodResponse { status: 0, call: None }),
            ("$iothub/methods/res/0/?$rid=+1", MethodResponse { status: 0, call: None }),
            ("$iothub/methods/res/0/?$rid=A", MethodResponse { status: 0, call: None }),
        ];
        for (topic, expected) in cases {
            assert_eq!(publication(topic, &id("d1")), Some(expected), "{topic}");
        }
    }

    #[test]
    fn a_device_publishes_to_nothing_else() {
        let long = format!("$iothub/twin/GET/?$rid={}", "r".repeat(REQUEST_ID_BYTES_MAX + 1));
        let cases = [
            "devices/d2/messages/events/",
            "devices/d/messages/events/",
            "devices/d11/messages/events/",
            "devices/D1/messages/events/",
            "Devices/d1/messages/events/",
            "devices/d1/messages/eventsx",
            "devices/d1/messages/events%2F",
            "devices/d1%2Fmessages/events/",
            "devices//d1/messages/events/",
            "devices/d1//messages/events/",
            "/devices/d1/messages/events/",
            "devices/d1/messages/devicebound/",
            "devices/d1/modules/m/messages/events/",
            "é",
            "$SYS/broker",
            "$drover/bus",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?rid=1",
            "$iothub/twin/res/200/?$rid=1",
            "$iothub/twin/PATCH/properties/desired/?$rid=1",
            "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x",
            "$iothub/methods/POST/reboot/?$rid=1",
            "$iothub/methods/res/ok/?$rid=1",
            "$iothub/methods/res/2147483648/?$rid=1",
            "$iothub/methods/res/200/",
            long.as_str(),
        ];
        for topic in cases {
            assert_eq!(publication(topic, &id("d1")), None, "{topic}");
        }
    }

    #[test]
    fn ids_are_compared_as_they_are() {
        for name in ["a%2Fb", "$x", "a?b", "a/b".trim_end_matches("/b"), "(=;')"] {
            let topic = format!("devices/{name}/messages/events/");
            assert!(publication(&topic, &id(name)).is_some(), "{name}");
        }
        assert_eq!(publication("devices/a/b/messages/events/", &id("a%2Fb")), None);
        assert_eq!(publication("devices/a%62/messages/events/", &id("ab")), None);
    }

    #[test]
    fn a_device_subscribes_to_its_own_channels_alone() {
        let cases = [
            ("devices/d1/messages/devicebound/#", Some(Channel::Commands)),
            ("$iothub/twin/res/#", Some(Channel::TwinResponses)),
            ("$iothub/twin/PATCH/properties/desired/#", Some(Channel::DesiredPatches)),
            ("$iothub/methods/POST/#", Some(Channel::Methods)),
            ("devices/d2/messages/devicebound/#", None),
            ("devices/+/messages/devicebound/#", None),
            ("devices/d1/messages/devicebound/+", None),
            ("devices/d1/#", None),
            ("#", None),
            ("+/#", None),
            ("$share/g/devices/d1/messages/devicebound/#", None),
            ("$queue/devices/d1/messages/devicebound/#", None),
            ("$SYS/#", None),
            ("$iothub/#", None),
        ];
        for (filter, expected) in cases {
            assert_eq!(channel(filter, &id("d1")), expected, "{filter}");
        }
    }

    #[test]
    fn a_module_and_its_device_keep_to_their_own_topics() {
        let module = id("d1").module(&"m".parse().expect("a legal id"));
        let bag = |bag| Some(Publication::Telemetry { bag });
        assert_eq!(publication("devices/d1/modules/m/messages/events/a=b", &module), bag("a=b"));
        assert_eq!(publication("devices/d1/modules/m/messages/events", &module), bag(""));
        for other in [
            "devices/d1/messages/events/",
            "devices/d1/modules/n/messages/events/",
            "devices/d1/modules/mm/messages/events/",
            "devices/d2/modules/m/messages/events/",
            "devices/d1/m/messages/events/",
            "devices/d1/modules/m/inputs/in",
        ] {
            assert_eq!(publication(other, &module), None, "{other}");
        }
        let cases = [
            ("devices/d1/modules/m/#", Some(Channel::Commands)),
            ("devices/d1/modules/m/messages/devicebound/#", Some(Channel::Commands)),
            ("devices/d1/modules/m/inputs/#", Some(Channel::Inputs)),
            ("$iothub/methods/POST/#", Some(Channel::Methods)),
            ("devices/d1/messages/devicebound/#", None),
            ("devices/d1/modules/#", None),
            ("devices/d1/modules/n/#", None),
            ("devices/d1/#", None),
        ];
        for (filter, expected) in cases {
            assert_eq!(channel(filter, &module), expected, "{filter}");
            let of_device = expected.filter(|channel| *channel == Channel::Methods);
            let own = filter == "devices/d1/messages/devicebound/#";
            assert_eq!(
                channel(filter, &id("d1")).is_some(),
                of_device.is_some() || own,
                "{filter}"
            );
        }
    }

    #[test]
    fn answers_carry_three_digits_and_the_request_id_first() {
        assert_eq!(twin_response(200, "a%20b", None), "$iothub/twin/res/200/?$rid=a%20b");
        assert_eq!(
            twin_response(204, "1", Some(Version::new(5))),
            "$iothub/twin/res/204/?$rid=1&$version=5"
        );
    }
}
