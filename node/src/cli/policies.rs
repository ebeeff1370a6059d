//! `drover policies`: who may use the API, and for what.

use clap::{Args, Subcommand, ValueEnum};
use drover_proto::admin::{
    DeletePolicyRequest, ListPoliciesRequest, Permission, Policy, PutPolicyRequest,
};
use serde_json::{Value, json};

use super::Failure;
use super::client::HubArguments;
use super::output::{Form, Output, Table};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the policies; keys are shown with --json.
    List,
    /// Make a policy or change one.
    Put(Put),
    /// Delete a policy; its tokens open nothing any more.
    Delete { name: String },
}

#[derive(Debug, Args)]
pub(super) struct Put {
    name: String,
    /// What it allows, such as registry-read,service-connect.
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    permissions: Vec<Allowed>,
    /// Base64 of 16 to 64 bytes. Without it: made for a new policy, kept for an existing one.
    #[arg(long, value_name = "BASE64", default_value = "")]
    primary_key: String,
    /// Base64 of 16 to 64 bytes. Without it: made for a new policy, kept for an existing one.
    #[arg(long, value_name = "BASE64", default_value = "")]
    secondary_key: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Allowed {
    /// Read device identities, keys included.
    RegistryRead,
    /// Create, change and delete device identities.
    RegistryWrite,
    /// Twins, telemetry.
    ServiceConnect,
    /// Connect as any device.
    DeviceConnect,
    /// Policies and the cluster.
    ClusterAdmin,
}

impl From<Allowed> for Permission {
    fn from(allowed: Allowed) -> Self {
        match allowed {
            Allowed::RegistryRead => Self::RegistryRead,
            Allowed::RegistryWrite => Self::RegistryWrite,
            Allowed::ServiceConnect => Self::ServiceConnect,
            Allowed::DeviceConnect => Self::DeviceConnect,
            Allowed::ClusterAdmin => Self::ClusterAdmin,
        }
    }
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let mut cluster = client.cluster();
    match command {
        Command::List => {
            let listed = cluster.list_policies(client.request(ListPoliciesRequest {})).await?;
            print(&listed.get_ref().policies, out)
        }
        Command::Put(put) => {
            let permissions =
                put.permissions.into_iter().map(|allowed| Permission::from(allowed).into());
            let policy = Policy {
                name: put.name,
                primary_key: put.primary_key,
                secondary_key: put.secondary_key,
                permissions: permissions.collect(),
            };
            let request = client.request(PutPolicyRequest { policy: Some(policy) });
            let policy = cluster.put_policy(request).await?.into_inner();
            print(&[policy], out)
        }
        Command::Delete { name } => {
            cluster.delete_policy(client.request(DeletePolicyRequest { name })).await?;
            Ok(())
        }
    }
}

pub(super) fn print(policies: &[Policy], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return policies.iter().try_for_each(|policy| out.json(&policy_json(policy)));
    }
    let mut table = Table::new(&["POLICY", "PERMISSIONS"]);
    for policy in policies {
        table.row([&policy.name, &permissions(policy).join(", ")]);
    }
    out.table(&table)
}

pub(super) fn policy_json(policy: &Policy) -> Value {
    json!({
        "name": policy.name,
        "permissions": permissions(policy),
        "primaryKey": policy.primary_key,
        "secondaryKey": policy.secondary_key,
    })
}

fn permissions(policy: &Policy) -> Vec<&'static str> {
    let name = |permission| match permission {
        Permission::RegistryRead => "registry-read",
        Permission::RegistryWrite => "registry-write",
        Permission::ServiceConnect => "service-connect",
        Permission::DeviceConnect => "device-connect",
        Permission::ClusterAdmin => "cluster-admin",
        Permission::Unspecified => "unknown",
    };
    policy.permissions().map(name).collect()
}
