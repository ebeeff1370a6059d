//! Whether a device or a module is connected, for people and for programs.

use drover_proto::admin::{Device, Module};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::json;
use super::output::Table;

/// What devices and modules say of their connections alike.
pub(super) struct Presence<'a> {
    is_connected: bool,
    node: &'a str,
    since: Option<&'a Timestamp>,
    last_activity: Option<&'a Timestamp>,
}

impl<'a> From<&'a Device> for Presence<'a> {
    fn from(device: &'a Device) -> Self {
        Self {
            is_connected: device.connected,
            node: &device.connected_node,
            since: device.connection_state_updated.as_ref(),
            last_activity: device.last_activity.as_ref(),
        }
    }
}

impl<'a> From<&'a Module> for Presence<'a> {
    fn from(module: &'a Module) -> Self {
        Self {
            is_connected: module.connected,
            node: &module.connected_node,
            since: module.connection_state_updated.as_ref(),
            last_activity: module.last_activity.as_ref(),
        }
    }
}

impl Presence<'_> {
    pub(super) fn connected(&self) -> String {
        match (self.is_connected, self.node) {
            (false, _) => "no".to_owned(),
            (true, "") => "yes".to_owned(),
            (true, node) => format!("at node {node}"),
        }
    }

    pub(super) fn since(&self) -> String {
        self.since.map(json::time_text).unwrap_or_default()
    }

    pub(super) fn last_activity(&self) -> String {
        self.last_activity.map(json::time_text).unwrap_or_default()
    }

    pub(super) fn rows(&self, table: &mut Table) {
        table.row(["CONNECTED", &self.connected()]);
        table.row(["SINCE", &self.since()]);
        table.row(["LAST ACTIVITY", &self.last_activity()]);
    }

    /// Adds the members of an object, by the names of Azure IoT Hub's REST API where it has one.
    pub(super) fn add_to(&self, shown: &mut Value) {
        shown["connectionState"] =
            json!(if self.is_connected { "Connected" } else { "Disconnected" });
        shown["connectionStateUpdatedTime"] = json!(json::time(self.since));
        shown["connectedNode"] = json!(self.node);
        shown["lastActivityTime"] = json!(json::time(self.last_activity));
    }
}
