//! Which live messages a reader wants. Matched here, not by the router, because a filter of the router costs hundreds of
//! kilobytes that it never gives back.

use drover_proto::admin::{Message, TailRequest};

use crate::grpc::convert;
use crate::grpc::status::Invalid;

/// What a reader wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    device: Devices,
    property: Option<Property>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Devices {
    All,
    One(String),
    BeginningWith(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Property {
    key: String,
    value: Option<String>,
}

impl TryFrom<TailRequest> for Filter {
    type Error = Invalid;

    fn try_from(request: TailRequest) -> Result<Self, Invalid> {
        let device = match request.device_id.strip_suffix('*') {
            _ if request.device_id.is_empty() => Devices::All,
            Some("") => Devices::All,
            Some(beginning) => {
                Devices::BeginningWith(convert::device_id("device_id", beginning)?.to_string())
            }
            None => Devices::One(convert::device_id("device_id", &request.device_id)?.to_string()),
        };
        if request.property_key.is_empty() && request.property_value.is_some() {
            return Err(Invalid::new("property_key", "name the property that must have the value"));
        }
        let property = (!request.property_key.is_empty())
            .then_some(Property { key: request.property_key, value: request.property_value });
        Ok(Self { device, property })
    }
}

impl Filter {
    pub(super) fn passes(&self, message: &Message) -> bool {
        let device = match &self.device {
            Devices::All => true,
            Devices::One(id) => message.device_id == *id,
            Devices::BeginningWith(beginning) => message.device_id.starts_with(beginning),
        };
        device && self.property.as_ref().is_none_or(|property| property.is_in(message))
    }
}

impl Property {
    fn is_in(&self, message: &Message) -> bool {
        message.application_properties.iter().any(|property| {
            property.key == self.key && (self.value.is_none() || property.value == self.value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(device: &str, key: &str, value: Option<&str>) -> Result<Filter, Invalid> {
        Filter::try_from(TailRequest {
            device_id: device.to_owned(),
            property_key: key.to_owned(),
            property_value: value.map(str::to_owned),
        })
    }

    fn passes(filter: &Filter, device: &str, properties: &[(&str, Option<&str>)]) -> bool {
        let property = |(key, value): &(&str, Option<&str>)| drover_proto::admin::Property {
            key: (*key).to_owned(),
            value: value.map(str::to_owned),
        };
        filter.passes(&Message {
            device_id: device.to_owned(),
            application_properties: properties.iter().map(property).collect(),
            ..Message::default()
        })
    }

    #[test]
    fn a_device_is_matched_whole_and_by_its_beginning_only_with_a_star() {
        let whole = filter("pump", "", None).expect("it is valid");
        assert!(passes(&whole, "pump", &[]) && !passes(&whole, "pump-2", &[]));
        let beginning = filter("pump*", "", None).expect("it is valid");
        assert!(passes(&beginning, "pump-2", &[]) && !passes(&beginning, "fan", &[]));
        for all in ["", "*"] {
            assert!(passes(&filter(all, "", None).expect("it is valid"), "fan", &[]));
        }
        assert!(filter("a/b", "", None).is_err());
    }

    #[test]
    fn a_property_is_asked_for_by_key_or_by_key_and_value() {
        let key = filter("", "level", None).expect("it is valid");
        assert!(passes(&key, "a", &[("level", None)]) && !passes(&key, "a", &[("x", None)]));
        let both = filter("", "level", Some("high")).expect("it is valid");
        assert!(passes(&both, "a", &[("level", Some("high"))]));
        assert!(!passes(&both, "a", &[("level", Some("low")), ("x", Some("high"))]));
        assert!(filter("", "", Some("high")).is_err());
    }
}
