//! Which live messages a reader wants. Matched here, not by the router, because a filter of the router costs hundreds of
//! kilobytes that it never gives back.

use drover_proto::admin::{Message, TailRequest};

use crate::grpc::convert;
use crate::grpc::status::Invalid;

/// What a reader wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    senders: Senders,
    property: Option<Property>,
}

/// Which devices and modules a reader wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Senders {
    device: Ids,
    module: Ids,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ids {
    /// Of modules: those that are none, too.
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
        let senders = Senders::parse(&request.device_id, &request.module_id)?;
        if request.property_key.is_empty() && request.property_value.is_some() {
            return Err(Invalid::new("property_key", "name the property that must have the value"));
        }
        let property = (!request.property_key.is_empty())
            .then_some(Property { key: request.property_key, value: request.property_value });
        Ok(Self { senders, property })
    }
}

impl Filter {
    pub(super) fn passes(&self, message: &Message) -> bool {
        self.senders.include(&message.device_id, &message.module_id)
            && self.property.as_ref().is_none_or(|property| property.is_in(message))
    }
}

impl Senders {
    /// Empty: all. A trailing `*` matches any ending.
    pub fn parse(device_id: &str, module_id: &str) -> Result<Self, Invalid> {
        let device = Ids::parse("device_id", device_id)?;
        Ok(Self { device, module: Ids::parse("module_id", module_id)? })
    }

    pub fn include(&self, device_id: &str, module_id: &str) -> bool {
        self.device.include(device_id) && self.module.include(module_id)
    }
}

impl Ids {
    /// Ids of devices and of modules have the same form.
    fn parse(field: &str, text: &str) -> Result<Self, Invalid> {
        Ok(match text.strip_suffix('*') {
            Some("") => Self::All,
            None if text.is_empty() => Self::All,
            None => Self::One(convert::device_id(field, text)?.to_string()),
            Some(beginning) => {
                Self::BeginningWith(convert::device_id(field, beginning)?.to_string())
            }
        })
    }

    fn include(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => id == one,
            Self::BeginningWith(beginning) => id.starts_with(beginning),
        }
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
            module_id: String::new(),
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
    fn modules_are_seen_with_their_device_and_alone() {
        let asked = |module: &str| {
            let request = TailRequest {
                device_id: "pump".to_owned(),
                module_id: module.to_owned(),
                ..TailRequest::default()
            };
            Filter::try_from(request).expect("it is valid")
        };
        let seen = |module: &str, sender: &str| {
            let (device_id, module_id) = ("pump".to_owned(), sender.to_owned());
            asked(module).passes(&Message { device_id, module_id, ..Message::default() })
        };
        assert!(seen("", "") && seen("", "ai") && seen("*", "ai"));
        assert!(seen("ai", "ai") && seen("a*", "ai"));
        assert!(!seen("ai", "") && !seen("ai", "ai2") && !seen("b*", "ai"));
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
