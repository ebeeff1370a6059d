//! `drover devices watch`: what happens to devices, live.

use clap::Args;
use drover_proto::admin::{DeviceEvent, DeviceEventKind, WatchDevicesRequest};
use serde_json::{Value, json};

use super::Failure;
use super::client::Client;
use super::follow::follow;
use super::json;
use super::output::{Form, Output};

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Only this device; a trailing * matches any ending.
    #[arg(default_value = "", hide_default_value = true)]
    id: String,
    /// Only this module, of the device or of all devices; a trailing * matches any ending.
    #[arg(long, value_name = "MODULE", default_value = "", hide_default_value = true)]
    module: String,
    /// Stop after so many events.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
}

pub(super) async fn call(
    watch: Watch,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = WatchDevicesRequest { device_id: watch.id, module_id: watch.module };
    let open = async || Ok(client.devices().watch_devices(request.clone()).await?.into_inner());
    follow(watch.limit, open, |response, left| {
        if response.missed > 0 {
            print_missed(response.missed, out)?;
        }
        for event in response.events.iter().take(usize::try_from(*left).unwrap_or(usize::MAX)) {
            print(event, out)?;
            *left -= 1;
        }
        Ok(())
    })
    .await
}

fn print_missed(missed: u64, out: &mut Output<'_>) -> Result<(), Failure> {
    match out.form() {
        Form::Json => out.json(&json!({ "missed": missed })),
        Form::People => out.line(&format!("… missed: up to {missed}")),
    }
}

fn print(event: &DeviceEvent, out: &mut Output<'_>) -> Result<(), Failure> {
    match out.form() {
        Form::Json => out.json(&event_json(event)),
        Form::People => {
            let time = event.time.as_ref().map(json::time_text).unwrap_or_default();
            let name = json::name(&event.device_id, &event.module_id);
            out.line(&format!("{time} {name} {}", text(event)))
        }
    }
}

fn text(event: &DeviceEvent) -> String {
    match event.kind() {
        DeviceEventKind::Unspecified => "something that this program does not know".to_owned(),
        DeviceEventKind::Created => "created".to_owned(),
        DeviceEventKind::Deleted => "deleted".to_owned(),
        DeviceEventKind::Connected => {
            format!("connected at node {} (epoch {})", event.node, event.epoch)
        }
        DeviceEventKind::Disconnected => format!("disconnected (epoch {})", event.epoch),
        DeviceEventKind::TwinChanged => format!("twin changed to version {}", event.twin_version),
    }
}

/// By the names of Azure IoT Hub's lifecycle and connection events.
fn event_json(event: &DeviceEvent) -> Value {
    let kind = match event.kind() {
        DeviceEventKind::Unspecified => "unknown",
        DeviceEventKind::Created => "createDeviceIdentity",
        DeviceEventKind::Deleted => "deleteDeviceIdentity",
        DeviceEventKind::Connected => "deviceConnected",
        DeviceEventKind::Disconnected => "deviceDisconnected",
        DeviceEventKind::TwinChanged => "updateTwin",
    };
    let mut shown = json!({
        "deviceId": event.device_id,
        "opType": kind,
        "operationTimestamp": json::time(event.time.as_ref()),
    });
    if !event.module_id.is_empty() {
        shown["moduleId"] = json!(event.module_id);
    }
    match event.kind() {
        DeviceEventKind::Connected => {
            shown["epoch"] = json!(event.epoch);
            shown["node"] = json!(event.node);
        }
        DeviceEventKind::Disconnected => shown["epoch"] = json!(event.epoch),
        DeviceEventKind::TwinChanged => shown["version"] = json!(event.twin_version),
        DeviceEventKind::Unspecified | DeviceEventKind::Created | DeviceEventKind::Deleted => {}
    }
    shown
}
