//! `drover devices bulk-create`: many devices from a file.
//!
//! A line is a device: either its id, or a JSON object with `deviceId` and what else is known about it, under the names
//! that `drover devices get --json` prints. So a list that was exported can be imported.

use clap::Args;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{
    self, BulkCreateDevicesRequest, BulkResult, CreateDeviceRequest, DeviceStatus, bulk_result,
};
use serde_json::{Value, json};

use super::client::Client;
use super::output::{Form, Output, Table};
use super::{Failure, devices, files, json as documents};

/// As many as the API takes in one call.
const CHUNK: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A device a line: its id, or a JSON object such as {"deviceId": "a", "tags": {}}; - is standard input.
    file: String,
}

pub(super) async fn create(
    arguments: Arguments,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    // All lines are read first: a mistake in the last one is found before the first device is made.
    let requests = parse(&files::read_text(&arguments.file)?)?;
    let (mut made, mut failed) = (0, 0);
    for chunk in requests.chunks(CHUNK) {
        let request = client.request(BulkCreateDevicesRequest { devices: chunk.to_vec() });
        let results = client.devices().bulk_create_devices(request).await?.into_inner().results;
        let is_made =
            |result: &&BulkResult| matches!(result.result, Some(bulk_result::Result::Device(_)));
        let made_here = results.iter().filter(is_made).count();
        made += made_here;
        failed += results.len() - made_here;
        print(&results, out)?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{made} devices were created, {failed} were refused"))),
    }
}

fn print(results: &[BulkResult], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return results.iter().try_for_each(|result| out.json(&result_json(result)));
    }
    let mut table = Table::new(&["ID", "RESULT"]);
    for result in results {
        match &result.result {
            Some(bulk_result::Result::Device(_)) => table.row([result.id.as_str(), "created"]),
            Some(bulk_result::Result::Error(error)) => table.row([&result.id, &error.message]),
            None => table.row([result.id.as_str(), "no answer"]),
        }
    }
    out.table(&table)
}

fn result_json(result: &BulkResult) -> Value {
    match &result.result {
        Some(bulk_result::Result::Device(device)) => devices::device_json(device),
        Some(bulk_result::Result::Error(error)) => {
            json!({ "deviceId": result.id, "error": { "code": error.code, "message": error.message } })
        }
        None => json!({ "deviceId": result.id, "error": { "message": "no answer" } }),
    }
}

fn parse(text: &str) -> Result<Vec<CreateDeviceRequest>, Failure> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let devices = lines.filter(|(_, line)| !line.is_empty());
    devices
        .map(|(number, line)| {
            device(line).map_err(|problem| Failure::Usage(format!("line {number}: {problem}")))
        })
        .collect()
}

fn device(line: &str) -> Result<CreateDeviceRequest, String> {
    if !line.starts_with('{') {
        return Ok(CreateDeviceRequest { id: line.to_owned(), ..CreateDeviceRequest::default() });
    }
    let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let id = text("deviceId");
    if id.is_empty() {
        return Err("deviceId is missing".to_owned());
    }
    let status = match line["status"].as_str() {
        None => DeviceStatus::Unspecified,
        Some("enabled") => DeviceStatus::Enabled,
        Some("disabled") => DeviceStatus::Disabled,
        Some(other) => return Err(format!("status is {other:?}: write enabled or disabled")),
    };
    Ok(CreateDeviceRequest {
        id,
        status: status.into(),
        status_reason: text("statusReason"),
        authentication: authentication(&line["authentication"])?,
        tags: section(&line, "tags")?,
        desired: section(&line, "desired")?,
    })
}

fn section(line: &Value, name: &str) -> Result<Option<prost_types::Struct>, String> {
    match &line[name] {
        Value::Null => Ok(None),
        Value::Object(members) => Ok(Some(documents::structure(members))),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(format!("{name} is not an object"))
        }
    }
}

fn authentication(given: &Value) -> Result<Option<admin::Authentication>, String> {
    let text =
        |section: &str, name: &str| given[section][name].as_str().unwrap_or_default().to_owned();
    let keys = || admin::SymmetricKeys {
        primary_key: text("symmetricKey", "primaryKey"),
        secondary_key: text("symmetricKey", "secondaryKey"),
    };
    let thumbprints = || admin::Thumbprints {
        primary: text("x509Thumbprint", "primaryThumbprint"),
        secondary: text("x509Thumbprint", "secondaryThumbprint"),
    };
    let kind = match (given, given["type"].as_str()) {
        (Value::Null, _) => return Ok(None),
        (_, None | Some("sas")) => Kind::Sas(keys()),
        (_, Some("selfSigned")) => Kind::SelfSigned(thumbprints()),
        (_, Some("certificateAuthority")) => {
            Kind::CertificateAuthority(admin::CertificateAuthority {})
        }
        (_, Some("none")) => Kind::None(admin::NoAuthentication {}),
        (_, Some(other)) => return Err(format!("authentication.type {other:?} is unknown")),
    };
    Ok(Some(admin::Authentication { kind: Some(kind) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_id_or_an_object() {
        let devices =
            parse("a\n\n  b \n{\"deviceId\":\"c\",\"status\":\"disabled\",\"tags\":{\"x\":1}}\n");
        let devices = devices.expect("all lines are valid");
        let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(devices[2].status(), DeviceStatus::Disabled);
        assert!(devices[2].tags.is_some());
    }

    #[test]
    fn a_mistake_is_reported_by_its_line_before_anything_is_sent() {
        for bad in ["{\"id\":\"c\"}", "{", "{\"deviceId\":\"c\",\"status\":\"on\"}"] {
            let Err(Failure::Usage(message)) = parse(&format!("a\n{bad}")) else {
                panic!("{bad} was taken")
            };
            assert!(message.starts_with("line 2:"), "{message}");
        }
    }

    #[test]
    fn what_was_exported_can_be_imported() {
        let keys =
            admin::SymmetricKeys { primary_key: "A".to_owned(), secondary_key: "B".to_owned() };
        let authentication = Some(admin::Authentication { kind: Some(Kind::Sas(keys)) });
        let exported = admin::Device {
            id: "pump".to_owned(),
            status: DeviceStatus::Enabled.into(),
            authentication: authentication.clone(),
            ..admin::Device::default()
        };
        let line = devices::device_json(&exported).to_string();
        let imported = device(&line).expect("it is valid");
        assert_eq!((imported.id, imported.authentication), (exported.id, authentication));
    }
}
