//! Modules: protobuf to typed requests and back. A module is registered, changed and shown as a device is, under two names.

use drover_cluster::core::change::DeviceSpec;
use drover_cluster::core::device::{Device, Status};
use drover_cluster::core::ids::DeviceId;
use drover_proto::admin;

use super::devices::{CreateDevice, RotateKeys, UpdateDevice, authentication_or_keys, shown};
use super::documents;
use crate::grpc::status::Invalid;

/// Names that begin so are kept for modules of the hub's own (`$edgeAgent` and `$edgeHub`).
const RESERVED: char = '$';

/// The id of a module, which must be named.
pub(crate) fn module_id(device: &str, module: &str) -> Result<DeviceId, Invalid> {
    if module.is_empty() {
        return Err(Invalid::new("module_id", "name the module"));
    }
    super::identity(device, module)
}

impl TryFrom<admin::CreateModuleRequest> for CreateDevice {
    type Error = Invalid;

    fn try_from(request: admin::CreateModuleRequest) -> Result<Self, Invalid> {
        let id = module_id(&request.device_id, &request.module_id)?;
        if request.module_id.starts_with(RESERVED) {
            return Err(Invalid::new("module_id", "names that begin with $ are the hub's own"));
        }
        let spec = DeviceSpec {
            // It will be that of the device.
            status: Status::Enabled,
            status_reason: None,
            authentication: authentication_or_keys(request.authentication)?,
            tags: documents::object("tags", request.tags.unwrap_or_default())?,
            desired: documents::object("desired", request.desired.unwrap_or_default())?,
        };
        Ok(Self { id, spec })
    }
}

impl TryFrom<admin::UpdateModuleRequest> for UpdateDevice {
    type Error = Invalid;

    fn try_from(request: admin::UpdateModuleRequest) -> Result<Self, Invalid> {
        let id = module_id(&request.device_id, &request.module_id)?;
        let if_match = super::condition("if_match", &request.if_match)?;
        Ok(Self::of_credentials(id, if_match, request.authentication))
    }
}

impl TryFrom<admin::RotateModuleKeysRequest> for RotateKeys {
    type Error = Invalid;

    fn try_from(request: admin::RotateModuleKeysRequest) -> Result<Self, Invalid> {
        let id = module_id(&request.device_id, &request.module_id)?;
        let if_match = super::condition("if_match", &request.if_match)?;
        Self::new(id, if_match, request.primary, request.secondary)
    }
}

pub(crate) fn module(module: Device) -> admin::Module {
    let (device_id, module_id) = super::names(&module.id);
    admin::Module {
        device_id,
        module_id,
        generation_id: module.generation.to_string(),
        etag: module.etag.to_string(),
        authentication: Some(shown(module.authentication)),
        connected: module.presence.connected_since.is_some(),
        connected_node: super::devices::connected_node(&module.presence),
        last_activity: module.presence.active.map(super::timestamp),
        connection_state_updated: module.presence.changed.map(super::timestamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(device: &str, module: &str) -> Result<CreateDevice, Invalid> {
        CreateDevice::try_from(admin::CreateModuleRequest {
            device_id: device.to_owned(),
            module_id: module.to_owned(),
            ..admin::CreateModuleRequest::default()
        })
    }

    #[test]
    fn a_module_needs_a_device_and_a_name_that_is_not_the_hubs_own() {
        let created = create("pump", "ai").expect("it is valid");
        assert_eq!(created.id.names(), ("pump", Some("ai")));
        for (device, module, field) in [
            ("pump", "", "module_id"),
            ("pump", "$edgeHub", "module_id"),
            ("pump", "a/b", "module_id"),
            ("", "ai", "device_id"),
            ("a/b", "ai", "device_id"),
        ] {
            let refused = create(device, module).err().expect("refused");
            assert_eq!(refused.field, field, "{device} {module}");
        }
    }

    #[test]
    fn an_update_of_a_module_cannot_touch_the_status() {
        let request = admin::UpdateModuleRequest {
            device_id: "pump".to_owned(),
            module_id: "ai".to_owned(),
            ..admin::UpdateModuleRequest::default()
        };
        let update = UpdateDevice::try_from(request).expect("it is valid");
        let change = update.over(None).expect("it is complete");
        assert_eq!((change.status, change.status_reason), (None, None));
    }
}
