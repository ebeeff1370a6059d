//! Twins: protobuf to typed requests and back.

use drover_cluster::actors::cluster::TwinChange;
use drover_cluster::core::change::TwinUpdate;
use drover_cluster::core::ids::{DeviceId, Version};
use drover_cluster::core::twin::{Section, Twin};
use drover_proto::admin;

use super::documents::{self, WriteVersions};
use crate::grpc::status::Invalid;

/// What a back end wants of a twin.
pub(crate) struct UpdateTwin {
    pub(crate) device: DeviceId,
    pub(crate) change: TwinChange,
}

impl UpdateTwin {
    /// `mode` is the method that was called.
    pub(crate) fn from_request(
        request: admin::UpdateTwinRequest,
        mode: TwinUpdate,
    ) -> Result<Self, Invalid> {
        let section = |field, section: Option<prost_types::Struct>| {
            section.map(|section| documents::object(field, section)).transpose()
        };
        let change = TwinChange {
            if_match: super::condition("if_match", &request.if_match)?,
            expected_desired: Some(request.if_desired_version)
                .filter(|version| *version != 0)
                .map(Version::new),
            mode,
            tags: section("tags", request.tags)?,
            desired: section("desired", request.desired)?,
        };
        Ok(Self { device: super::identity(&request.device_id, &request.module_id)?, change })
    }
}

pub(crate) fn twin(device: &DeviceId, twin: &Twin) -> admin::Twin {
    let (device_id, module_id) = super::names(device);
    admin::Twin {
        device_id,
        module_id,
        etag: twin.etag.to_string(),
        version: twin.version.get(),
        tags: Some(documents::structure(&twin.tags)),
        desired: Some(section(&twin.desired, WriteVersions::Shown)),
        reported: Some(section(&twin.reported, WriteVersions::Hidden)),
    }
}

fn section(section: &Section, versions: WriteVersions) -> admin::TwinSection {
    admin::TwinSection {
        properties: Some(documents::structure(&section.properties)),
        version: section.version.get(),
        metadata: Some(documents::metadata(&section.metadata, versions)),
    }
}

#[cfg(test)]
mod tests {
    use drover_cluster::core::change::Condition;
    use drover_cluster::core::ids::Etag;

    use super::*;

    #[test]
    fn what_is_not_given_is_no_condition_and_no_section() {
        let request =
            admin::UpdateTwinRequest { device_id: "pump".to_owned(), ..Default::default() };
        let update = UpdateTwin::from_request(request, TwinUpdate::Merge).expect("it is valid");
        assert_eq!(update.change.if_match, Condition::Any);
        assert_eq!(update.change.expected_desired, None);
        assert_eq!((update.change.tags, update.change.desired), (None, None));
    }

    #[test]
    fn both_conditions_are_carried() {
        let request = admin::UpdateTwinRequest {
            device_id: "pump".to_owned(),
            if_match: "4".to_owned(),
            if_desired_version: 2,
            desired: Some(prost_types::Struct::default()),
            ..Default::default()
        };
        let update = UpdateTwin::from_request(request, TwinUpdate::Replace).expect("it is valid");
        assert_eq!(update.change.if_match, Condition::Match(Etag::new(4)));
        assert_eq!(update.change.expected_desired, Some(Version::new(2)));
        assert_eq!(update.change.desired, Some(drover_cluster::core::document::Object::new()));
    }
}
