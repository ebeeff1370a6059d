//! `drover twins`: desired and reported properties, tags.

use clap::{Args, Subcommand};
use drover_proto::admin::{GetTwinRequest, Twin, TwinSection, UpdateTwinRequest};
use prost_types::Struct;
use serde_json::{Value, json};

use super::client::HubArguments;
use super::credentials::Identity;
use super::output::{Form, Output};
use super::{Failure, json as documents};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show a twin.
    Get(Identity),
    /// Merge into tags and desired properties; null deletes. A connected device is told.
    Patch(Change),
    /// Replace tags and desired properties; what is not given becomes empty.
    Replace(Change),
}

#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    identity: Identity,
    /// A JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON", required_unless_present = "desired")]
    tags: Option<String>,
    /// A JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON")]
    desired: Option<String>,
    /// Change it only if its etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
    /// Change it only if the desired properties have this version.
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    if_desired_version: u64,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let mut twins = client.twins();
    let twin = match command {
        Command::Get(Identity { id, module }) => {
            let request = GetTwinRequest { device_id: id, module_id: module };
            twins.get_twin(client.request(request)).await?
        }
        Command::Patch(change) => twins.patch_twin(client.request(change.request()?)).await?,
        Command::Replace(change) => twins.replace_twin(client.request(change.request()?)).await?,
    };
    show(twin.get_ref(), out)
}

/// The twin that an identity begins with.
#[derive(Debug, Args)]
pub(super) struct NewTwin {
    /// Tags of its twin: a JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON")]
    tags: Option<String>,
    /// Desired properties of its twin: a JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON")]
    desired: Option<String>,
}

impl NewTwin {
    /// Tags and desired properties.
    pub(super) fn sections(self) -> Result<(Option<Struct>, Option<Struct>), Failure> {
        Ok((section(self.tags)?, section(self.desired)?))
    }
}

fn section(argument: Option<String>) -> Result<Option<Struct>, Failure> {
    argument.as_deref().map(documents::object_argument).transpose()
}

impl Change {
    fn request(self) -> Result<UpdateTwinRequest, Failure> {
        Ok(UpdateTwinRequest {
            device_id: self.identity.id,
            module_id: self.identity.module,
            if_match: self.if_match,
            if_desired_version: self.if_desired_version,
            tags: section(self.tags)?,
            desired: section(self.desired)?,
        })
    }
}

/// A twin is a document: people read it as JSON, too, over several lines and without metadata.
fn show(twin: &Twin, out: &mut Output<'_>) -> Result<(), Failure> {
    match out.form() {
        Form::Json => out.json(&twin_json(twin, section_json)),
        Form::People => out.document(&twin_json(twin, section_for_people)),
    }
}

/// By the names of Azure IoT Hub's REST API.
fn twin_json(twin: &Twin, section: fn(&TwinSection) -> Value) -> Value {
    let section = |part: Option<&TwinSection>| part.map_or(Value::Null, section);
    let mut shown = json!({
        "deviceId": twin.device_id,
        "etag": twin.etag,
        "version": twin.version,
        "tags": documents::object(twin.tags.as_ref()),
        "properties": {
            "desired": section(twin.desired.as_ref()),
            "reported": section(twin.reported.as_ref()),
        },
    });
    if !twin.module_id.is_empty() {
        shown["moduleId"] = json!(twin.module_id);
    }
    shown
}

fn section_for_people(section: &TwinSection) -> Value {
    let mut shown = documents::object(section.properties.as_ref());
    shown["$version"] = json!(section.version);
    shown
}

fn section_json(section: &TwinSection) -> Value {
    let mut shown = section_for_people(section);
    shown["$metadata"] = documents::object(section.metadata.as_ref());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_shown_as_the_document_it_is() {
        let desired = documents::object_argument(r#"{"rate":5}"#).expect("an object");
        let section = TwinSection { properties: Some(desired), version: 2, metadata: None };
        let twin = Twin {
            device_id: "pump".to_owned(),
            etag: "4".to_owned(),
            version: 3,
            desired: Some(section),
            ..Twin::default()
        };
        assert_eq!(
            twin_json(&twin, section_for_people).to_string(),
            r#"{"deviceId":"pump","etag":"4","properties":{"desired":{"$version":2,"rate":5},"reported":null},"tags":{},"version":3}"#
        );
    }
}
