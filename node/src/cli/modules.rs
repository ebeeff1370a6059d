//! `drover modules`: parts of a device that connect by themselves.

use clap::{Args, Subcommand};
use drover_proto::admin::{
    CreateModuleRequest, DeleteModuleRequest, GetModuleRequest, ListModulesRequest, Module,
    RotateModuleKeysRequest, UpdateModuleRequest,
};
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, HubArguments};
use super::credentials::{self, Condition, Credentials, WhichKeys};
use super::output::{Form, Output, Table};
use super::presence::Presence;
use super::twins::NewTwin;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register a module of a device; keys that are not given are made.
    Create(Create),
    /// Show a module, keys included.
    Get(Name),
    /// List the modules of a device.
    List { device: String },
    /// Change a module's credentials, and end its connection.
    Update(Update),
    /// Replace keys by new random ones, and end the module's connection.
    RotateKeys(RotateKeys),
    /// Remove a module and its twin, and end its connection. Its messages stay for as long as all messages do.
    Delete {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        condition: Condition,
    },
}

#[derive(Debug, Args)]
pub(super) struct Name {
    device: String,
    module: String,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    twin: NewTwin,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    condition: Condition,
}

#[derive(Debug, Args)]
pub(super) struct RotateKeys {
    #[command(flatten)]
    name: Name,
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
    let client = connection.client()?;
    match command {
        Command::Create(arguments) => create(arguments, &client, out).await,
        Command::Get(Name { device, module }) => show(&get(&client, &device, &module).await?, out),
        Command::List { device } => list(device, &client, out).await,
        Command::Update(arguments) => update(arguments, &client, out).await,
        Command::RotateKeys(arguments) => rotate(arguments, &client, out).await,
        Command::Delete { name: Name { device, module }, condition } => {
            let if_match = condition.if_match;
            let request = DeleteModuleRequest { device_id: device, module_id: module, if_match };
            client.modules().delete_module(client.request(request)).await?;
            Ok(())
        }
    }
}

async fn create(arguments: Create, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let (tags, desired) = arguments.twin.sections()?;
    let request = CreateModuleRequest {
        device_id: arguments.name.device,
        module_id: arguments.name.module,
        authentication: arguments.credentials.authentication()?,
        tags,
        desired,
    };
    let module = client.modules().create_module(client.request(request)).await?;
    show(module.get_ref(), out)
}

pub(super) async fn get(client: &Client, device: &str, module: &str) -> Result<Module, Failure> {
    let request = GetModuleRequest { device_id: device.to_owned(), module_id: module.to_owned() };
    Ok(client.modules().get_module(client.request(request)).await?.into_inner())
}

async fn list(device: String, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let request = client.request(ListModulesRequest { device_id: device });
    let modules = client.modules().list_modules(request).await?.into_inner().modules;
    print_list(&modules, out)
}

fn print_list(modules: &[Module], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return modules.iter().try_for_each(|module| out.json(&module_json(module)));
    }
    let mut table = Table::new(&["MODULE", "CONNECTED", "SINCE", "AUTHENTICATION"]);
    for module in modules {
        table.row([
            module.module_id.as_str(),
            if module.connected { "yes" } else { "no" },
            &Presence::from(module).since(),
            credentials::kind_text(module.authentication.as_ref()),
        ]);
    }
    out.table(&table)
}

async fn update(arguments: Update, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let authentication = arguments.credentials.authentication()?;
    if authentication.is_none() {
        return Err(Failure::Usage("say which credentials it has from now on".to_owned()));
    }
    let request = UpdateModuleRequest {
        device_id: arguments.name.device,
        module_id: arguments.name.module,
        if_match: arguments.condition.if_match,
        authentication,
    };
    let module = client.modules().update_module(client.request(request)).await?;
    show(module.get_ref(), out)
}

async fn rotate(
    arguments: RotateKeys,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = RotateModuleKeysRequest {
        device_id: arguments.name.device,
        module_id: arguments.name.module,
        if_match: arguments.condition.if_match,
        primary: arguments.which.primary,
        secondary: arguments.which.secondary,
    };
    let module = client.modules().rotate_module_keys(client.request(request)).await?;
    show(module.get_ref(), out)
}

fn show(module: &Module, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return out.json(&module_json(module));
    }
    let mut table = Table::new(&["DEVICE", &module.device_id]);
    table.row(["MODULE", &module.module_id]);
    Presence::from(module).rows(&mut table);
    credentials::rows(module.authentication.as_ref(), &mut table);
    table.row(["ETAG", &module.etag]);
    table.row(["GENERATION", &module.generation_id]);
    out.table(&table)
}

/// By the names of Azure IoT Hub's REST API.
fn module_json(module: &Module) -> Value {
    let mut shown = json!({
        "deviceId": module.device_id,
        "moduleId": module.module_id,
        "generationId": module.generation_id,
        "etag": module.etag,
        "authentication": credentials::to_json(module.authentication.as_ref()),
    });
    Presence::from(module).add_to(&mut shown);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_a_table_for_people_and_an_object_a_line_for_programs() {
        let module = Module {
            device_id: "pump".to_owned(),
            module_id: "ai".to_owned(),
            connected: true,
            ..Module::default()
        };
        let printed = |form| {
            let mut bytes = Vec::new();
            let out = &mut Output::new(&mut bytes, form);
            print_list(&[module.clone(), module.clone()], out).expect("memory takes it");
            String::from_utf8(bytes).expect("it is text")
        };
        assert!(printed(Form::People).contains("\nai      yes        -      none\n"));
        let text = printed(Form::Json);
        let first: Value = serde_json::from_str(text.lines().next().expect("two")).expect("JSON");
        assert_eq!((&first["deviceId"], &first["moduleId"]), (&json!("pump"), &json!("ai")));
    }
}
