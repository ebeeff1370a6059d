//! What a device and its modules have to do with each other.
//!
//! A module is an identity like a device's, with records of its own in the same shard. It is there only while its device is,
//! and may connect only while its device may: what befalls the device befalls its modules in the same log entry. What
//! each identity does by itself is `shard`'s; loading and storing the other one's records is the shell's.

use crate::change::{Condition, DeviceChange, Refusal};
use crate::device::{Device, Status};
use crate::ids::{DeviceId, ModuleId};

/// How many modules a device may have (`spec/twin-semantics.md` section 1).
pub const MODULES_MAX: usize = 50;

/// Whether a change has to know the device whose module it changes.
pub fn needs_owner(id: &DeviceId, change: &DeviceChange) -> bool {
    let is_registration =
        matches!(change, DeviceChange::Create { .. } | DeviceChange::Delete { .. });
    is_registration && id.is_module()
}

/// Whether one more module of this device may be registered, which is not there yet. The answer is its status.
pub(crate) fn admit(owner: Option<&Device>, module: &DeviceId) -> Result<Status, Refusal> {
    let Some(owner) = owner else {
        return Err(Refusal::DeviceNotFound { device: module.owner() });
    };
    if owner.modules.len() >= MODULES_MAX {
        return Err(Refusal::TooManyModules { device: owner.id.clone(), limit: MODULES_MAX });
    }
    Ok(owner.status)
}

/// The module that the id names.
pub(crate) fn name(id: &DeviceId) -> Option<ModuleId> {
    let (_, module) = id.names();
    module.map(|module| module.parse().expect("the id was made from it"))
}

/// What the deletion of a device makes of its modules.
pub(crate) fn deleted_with(device: &Device) -> Vec<(DeviceId, DeviceChange)> {
    of_each(device, &DeviceChange::Delete { if_match: Condition::Any })
}

/// What a new status of a device makes of its modules.
pub(crate) fn updated_with(device: &Device) -> Vec<(DeviceId, DeviceChange)> {
    let update = DeviceChange::Update {
        if_match: Condition::Any,
        status: Some(device.status),
        status_reason: None,
        authentication: None,
    };
    of_each(device, &update)
}

fn of_each(device: &Device, change: &DeviceChange) -> Vec<(DeviceId, DeviceChange)> {
    let of = |module| (device.id.module(module), change.clone());
    device.modules.iter().map(of).collect()
}
