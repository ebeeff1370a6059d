//! Public protobuf to typed requests and back, a file for each service.
//!
//! What comes in is checked here, once, into types that cannot be wrong; a failure names its field. What goes out
//! cannot fail.

pub(crate) mod authorities;
pub(crate) mod backups;
pub(crate) mod cluster;
pub(crate) mod commands;
pub(crate) mod devices;
pub(crate) mod documents;
pub(crate) mod members;
pub(crate) mod messages;
pub(crate) mod methods;
pub(crate) mod modules;
pub(crate) mod twins;

use drover_cluster::core::change::Condition;
use drover_cluster::core::ids::{DeviceId, Etag, LogTime};
use prost_types::Timestamp;

use super::status::Invalid;

/// How many results a page may have.
pub(crate) const PAGE_SIZE_MAX: u32 = 1_000;
const PAGE_SIZE_DEFAULT: u32 = 100;
/// How long a stream may run on a right that has ended.
pub(crate) const RECHECK: std::time::Duration = std::time::Duration::from_secs(10);

pub(crate) fn device_id(field: &str, id: &str) -> Result<DeviceId, Invalid> {
    id.parse().map_err(|problem| Invalid::new(field, problem))
}

/// The device itself or, if `module` is not empty, that module of it.
pub(crate) fn identity(device: &str, module: &str) -> Result<DeviceId, Invalid> {
    let device = device_id("device_id", device)?;
    if module.is_empty() {
        return Ok(device);
    }
    let module = module.parse().map_err(|problem| Invalid::new("module_id", problem))?;
    Ok(device.module(&module))
}

/// How a device or module is named in answers: `device_id` and `module_id`, which is empty for a device.
pub(crate) fn names(id: &DeviceId) -> (String, String) {
    let (device, module) = id.names();
    (device.to_owned(), module.unwrap_or_default().to_owned())
}

/// An etag as a client sends it: what an answer said, perhaps in the quotes that HTTP puts around it. Empty and `*`
/// ask for nothing.
pub(crate) fn condition(field: &str, etag: &str) -> Result<Condition, Invalid> {
    let bare = etag.trim_matches('"');
    if bare.is_empty() || bare == "*" {
        return Ok(Condition::Any);
    }
    let etag = bare.parse().map_err(|_| {
        Invalid::new(field, "this is not an etag of ours: send one back as it was read")
    })?;
    Ok(Condition::Match(Etag::new(etag)))
}

pub(crate) fn page_size(size: u32) -> Result<u32, Invalid> {
    match size {
        0 => Ok(PAGE_SIZE_DEFAULT),
        1..=PAGE_SIZE_MAX => Ok(size),
        _ => Err(Invalid::new("page_size", format!("at most {PAGE_SIZE_MAX} are allowed"))),
    }
}

/// A time as the log counts it. Times before 1970 are its beginning: nothing is older.
pub(crate) fn log_time(field: &str, time: &Timestamp) -> Result<LogTime, Invalid> {
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(Invalid::new(field, "nanos must be between 0 and 999999999"));
    }
    let Ok(seconds) = u64::try_from(time.seconds) else { return Ok(LogTime::new(0)) };
    let ms = seconds
        .saturating_mul(1_000)
        .saturating_add(u64::from(time.nanos.unsigned_abs()) / 1_000_000);
    Ok(LogTime::new(ms))
}

pub(crate) fn timestamp(at: LogTime) -> Timestamp {
    let nanos = (at.get() % 1_000) as i32 * 1_000_000;
    Timestamp { seconds: i64::try_from(at.get() / 1_000).unwrap_or(i64::MAX), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_taken_back_as_it_was_given_quoted_or_not() {
        for text in ["17", "\"17\""] {
            assert_eq!(condition("if_match", text), Ok(Condition::Match(Etag::new(17))));
        }
        for text in ["", "*", "\"*\""] {
            assert_eq!(condition("if_match", text), Ok(Condition::Any));
        }
        assert!(condition("if_match", "AAAA=").is_err());
    }

    #[test]
    fn an_identity_is_a_device_or_one_of_its_modules() {
        for (device, module) in [("pump", ""), ("pump", "ai")] {
            let id = identity(device, module).expect("it is legal");
            assert_eq!(names(&id), (device.to_owned(), module.to_owned()));
        }
        let field = |device, module| identity(device, module).map_err(|invalid| invalid.field);
        assert_eq!(field("pump/ai", ""), Err("device_id".into()));
        assert_eq!(field("pump", "a/i"), Err("module_id".into()));
        assert_eq!(field("", "ai"), Err("device_id".into()));
    }

    #[test]
    fn times_survive_the_way_out_and_back() {
        for ms in [0, 1, 999, 1_700_000_000_123] {
            let at = LogTime::new(ms);
            assert_eq!(log_time("from", &timestamp(at)), Ok(at));
        }
        let before_1970 = Timestamp { seconds: -1, nanos: 0 };
        assert_eq!(log_time("from", &before_1970), Ok(LogTime::new(0)));
        assert!(log_time("from", &Timestamp { seconds: 0, nanos: -1 }).is_err());
    }
}
