//! `drover devices`: the registry.

use clap::{Args, Subcommand};
use drover_proto::admin::{
    CreateDeviceRequest, DeleteDeviceRequest, Device, DeviceStatus, GetDeviceRequest,
    ListDevicesRequest, RotateKeysRequest, UpdateDeviceRequest,
};
use serde_json::{Value, json};

use super::client::{Client, HubArguments};
use super::credentials::{self, Condition, Credentials, WhichKeys};
use super::output::{Form, Output, Table};
use super::presence::Presence;
use super::twins::NewTwin;
use super::{Failure, json};

/// What is asked for in one page of a list.
const PAGE_SIZE: u32 = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register a device; keys that are not given are made.
    Create(Create),
    /// Show a device, keys included.
    Get { id: String },
    /// List devices.
    List {
        /// Stop after so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Change a device's reason or credentials. New credentials end its connection.
    Update(Update),
    /// Let a device connect again.
    Enable {
        id: String,
        #[command(flatten)]
        condition: Condition,
    },
    /// Keep a device and its modules from connecting, and end their connections.
    Disable {
        id: String,
        /// Why, for those who look later.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        condition: Condition,
    },
    /// Remove a device, its twin and its modules, and end their connections. Their messages stay for as long as all do.
    Delete {
        id: String,
        #[command(flatten)]
        condition: Condition,
    },
    /// Replace keys by new random ones, and end the device's connection.
    RotateKeys(RotateKeys),
    /// Register many devices from a file, each succeeding or failing on its own.
    BulkCreate(super::bulk::Arguments),
    /// Follow what happens to devices: connections and their ends, created, deleted, twins changed.
    Watch(super::watch::Watch),
    /// Make a token that a device or module connects with (its MQTT password).
    SasToken(super::tokens::SasToken),
    /// Show the connection string that the SDK of a device or module takes.
    ConnectionString(super::tokens::ShowConnectionString),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    id: String,
    /// Keep it from connecting for now.
    #[arg(long)]
    disabled: bool,
    /// Why it is enabled or disabled.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    twin: NewTwin,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    id: String,
    /// Why it is enabled or disabled; empty clears it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    condition: Condition,
}

#[derive(Debug, Args)]
pub(super) struct RotateKeys {
    id: String,
    #[command(flatten)]
    which: WhichKeys,
    #[command(flatten)]
    condition: Condition,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create(arguments, &connection.client()?, out).await,
        Command::Get { id } => {
            let device = get(&connection.client()?, &id).await?;
            show(&device, out)
        }
        Command::List { limit } => list(limit, &connection.client()?, out).await,
        Command::Update(arguments) => update(arguments, &connection.client()?, out).await,
        Command::Enable { id, condition } => {
            let request = set_status(id, condition, DeviceStatus::Enabled, None);
            send_update(request, &connection.client()?, out).await
        }
        Command::Disable { id, reason, condition } => {
            let request = set_status(id, condition, DeviceStatus::Disabled, reason);
            send_update(request, &connection.client()?, out).await
        }
        Command::Delete { id, condition } => {
            let request = DeleteDeviceRequest { id, if_match: condition.if_match };
            let client = connection.client()?;
            client.devices().delete_device(client.request(request)).await?;
            Ok(())
        }
        Command::RotateKeys(arguments) => rotate(arguments, &connection.client()?, out).await,
        Command::BulkCreate(arguments) => {
            super::bulk::create(arguments, &connection.client()?, out).await
        }
        Command::Watch(watch) => super::watch::call(watch, &connection.client()?, out).await,
        Command::SasToken(arguments) => super::tokens::sas_token(arguments, connection, out).await,
        Command::ConnectionString(arguments) => {
            super::tokens::connection_string(arguments, connection, out).await
        }
    }
}

async fn create(arguments: Create, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let status = if arguments.disabled { DeviceStatus::Disabled } else { DeviceStatus::Enabled };
    let (tags, desired) = arguments.twin.sections()?;
    let request = CreateDeviceRequest {
        id: arguments.id,
        status: status.into(),
        status_reason: arguments.reason,
        authentication: arguments.credentials.authentication()?,
        tags,
        desired,
    };
    let device = client.devices().create_device(client.request(request)).await?;
    show(device.get_ref(), out)
}

pub(super) async fn get(client: &Client, id: &str) -> Result<Device, Failure> {
    let request = client.request(GetDeviceRequest { id: id.to_owned() });
    Ok(client.devices().get_device(request).await?.into_inner())
}

/// Page by page, so that a long list begins at once and costs no memory. The widths of a table are then those of a page.
async fn list(limit: Option<u64>, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut page_token = String::new();
    loop {
        let page_size = u32::try_from(left).unwrap_or(u32::MAX).min(PAGE_SIZE);
        let request = client.request(ListDevicesRequest { page_size, page_token });
        let page = client.devices().list_devices(request).await?.into_inner();
        let count = page.devices.len() as u64;
        print_page(&page.devices, out)?;
        left = left.saturating_sub(count);
        if left == 0 || page.next_page_token.is_empty() {
            return Ok(());
        }
        page_token = page.next_page_token;
    }
}

fn print_page(devices: &[Device], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return devices.iter().try_for_each(|device| out.json(&device_json(device)));
    }
    let columns =
        ["ID", "STATUS", "CONNECTED", "SINCE", "LAST ACTIVITY", "AUTHENTICATION", "REASON"];
    let mut table = Table::new(&columns);
    for device in devices {
        let presence = Presence::from(device);
        table.row([
            device.id.as_str(),
            status_text(device),
            &presence.connected(),
            &presence.since(),
            &presence.last_activity(),
            credentials::kind_text(device.authentication.as_ref()),
            &device.status_reason,
        ]);
    }
    out.table(&table)
}

async fn update(arguments: Update, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let request = UpdateDeviceRequest {
        id: arguments.id,
        if_match: arguments.condition.if_match,
        status: DeviceStatus::Unspecified.into(),
        status_reason: arguments.reason,
        authentication: arguments.credentials.authentication()?,
    };
    if request.status_reason.is_none() && request.authentication.is_none() {
        return Err(Failure::Usage("say what to change: --reason, or new credentials".to_owned()));
    }
    send_update(request, client, out).await
}

fn set_status(
    id: String,
    condition: Condition,
    status: DeviceStatus,
    reason: Option<String>,
) -> UpdateDeviceRequest {
    UpdateDeviceRequest {
        id,
        if_match: condition.if_match,
        status: status.into(),
        status_reason: reason,
        authentication: None,
    }
}

async fn send_update(
    request: UpdateDeviceRequest,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let device = client.devices().update_device(client.request(request)).await?;
    show(device.get_ref(), out)
}

async fn rotate(
    arguments: RotateKeys,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = RotateKeysRequest {
        id: arguments.id,
        if_match: arguments.condition.if_match,
        primary: arguments.which.primary,
        secondary: arguments.which.secondary,
    };
    let device = client.devices().rotate_keys(client.request(request)).await?;
    show(device.get_ref(), out)
}

fn show(device: &Device, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return out.json(&device_json(device));
    }
    let mut table = Table::new(&["ID", &device.id]);
    table.row(["STATUS", status_text(device)]);
    table.row(["REASON", &device.status_reason]);
    Presence::from(device).rows(&mut table);
    credentials::rows(device.authentication.as_ref(), &mut table);
    table.row(["ETAG", &device.etag]);
    table.row(["GENERATION", &device.generation_id]);
    out.table(&table)
}

fn status_text(device: &Device) -> &'static str {
    match device.status() {
        DeviceStatus::Enabled => "enabled",
        DeviceStatus::Disabled => "disabled",
        DeviceStatus::Unspecified => "unknown",
    }
}

/// By the names of Azure IoT Hub's REST API.
pub(super) fn device_json(device: &Device) -> Value {
    let mut shown = json!({
        "deviceId": device.id,
        "generationId": device.generation_id,
        "etag": device.etag,
        "status": status_text(device),
        "statusReason": device.status_reason,
        "statusUpdatedTime": json::time(device.status_updated.as_ref()),
        "authentication": credentials::to_json(device.authentication.as_ref()),
    });
    Presence::from(device).add_to(&mut shown);
    shown
}

#[cfg(test)]
mod tests {
    use drover_proto::admin;
    use drover_proto::admin::authentication::Kind;

    use super::*;

    fn device() -> Device {
        let keys = admin::SymmetricKeys {
            primary_key: "AAAA".to_owned(),
            secondary_key: "BBBB".to_owned(),
        };
        Device {
            id: "pump".to_owned(),
            etag: "3".to_owned(),
            generation_id: "77".to_owned(),
            status: DeviceStatus::Disabled.into(),
            status_reason: "stolen\u{1b}[2J".to_owned(),
            authentication: Some(admin::Authentication { kind: Some(Kind::Sas(keys)) }),
            ..Device::default()
        }
    }

    fn printed(form: Form, print: impl FnOnce(&mut Output<'_>) -> Result<(), Failure>) -> String {
        let mut bytes = Vec::new();
        print(&mut Output::new(&mut bytes, form)).expect("memory takes it");
        String::from_utf8(bytes).expect("it is text")
    }

    #[test]
    fn a_list_of_devices_is_a_table_for_people() {
        let text = printed(Form::People, |out| print_page(&[device()], out));
        assert_eq!(
            text,
            "ID    STATUS    CONNECTED  SINCE  LAST ACTIVITY  AUTHENTICATION  REASON\n\
             pump  disabled  no         -      -              sas             stolen\\u{1b}[2J\n"
        );
    }

    #[test]
    fn a_list_of_devices_is_an_object_a_line_for_programs() {
        let text = printed(Form::Json, |out| print_page(&[device(), device()], out));
        assert_eq!(text.lines().count(), 2);
        let first = text.lines().next().expect("two lines");
        let value: Value = serde_json::from_str(first).expect("it is JSON");
        assert_eq!(value["deviceId"], "pump");
        assert_eq!(value["authentication"]["symmetricKey"]["primaryKey"], "AAAA");
    }

    #[test]
    fn one_device_is_shown_with_its_keys() {
        let text = printed(Form::People, |out| show(&device(), out));
        assert!(text.contains("PRIMARY KEY     AAAA\n"), "{text}");
    }
}
