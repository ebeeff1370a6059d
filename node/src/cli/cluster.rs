//! `drover cluster`: make a cluster of nodes, see how it is.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use drover_proto::admin::{
    ClusterStatus, GetStatusRequest, InitializeRequest, InitializeResponse, Member, MemberState,
    NodeStatus, Permission, ReplicaStatus, ShardStatus,
};
use serde_json::{Value, json};

use super::client::{Client, HubArguments};
use super::output::{Form, Output, Table, counted, printable};
use super::zones::Zones;
use super::{Failure, backup, files, json as values, members, policies, recover, upgrade};

/// Often enough to see something move, seldom enough to cost nothing.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a cluster of configured nodes. Done once, at one of them, with its bootstrap token.
    Init(Init),
    /// Show nodes, shards, leaders and how far replicas are behind.
    Status {
        /// Show each shard, too.
        #[arg(long)]
        shards: bool,
        /// Show it anew every two seconds.
        #[arg(long)]
        watch: bool,
    },
    /// Make a token with which one node can join: drover node --join TOKEN …
    JoinToken(members::JoinToken),
    /// Move away what a node leads and holds, and its sessions: before it is stopped for long, or removed.
    Drain(members::Drain),
    /// Let a drained node have its share again.
    Undrain(members::Node),
    /// Take out a node that is dead, or drained, and restore elsewhere what it had.
    Remove(members::Node),
    /// Let a replica that was stopped begin anew from the others: its data could not be trusted.
    Rebuild(members::Rebuild),
    /// Hold what a new build brings, so that nodes can go back to the former one, or let it come.
    #[command(subcommand)]
    Upgrade(upgrade::Command),
    /// Give the cluster a name that its status shows.
    Rename(upgrade::Rename),
    /// Show, pause or take back what moves between nodes.
    #[command(subcommand)]
    Moves(members::Moves),
    /// Copy the cluster to a folder or a bucket, check a copy, make a new cluster of one.
    #[command(subcommand)]
    Backup(backup::Command),
    /// Last resort, at a stopped node: make it the whole cluster when a majority is lost for good.
    Recover(recover::Arguments),
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// A node, such as 1=10.0.0.1:7070,hub-1.example:7443. Repeat it for each.
    #[arg(
        long = "member",
        value_name = "NUMBER=PEER_ADDRESS,ADMIN_ADDRESS[,ZONE]",
        required = true
    )]
    members: Vec<MemberArgument>,
    /// 1 to 4096, for the life of the cluster.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    shards: u32,
    /// Copies of each shard: 1, 3 or 5 [default: 3, or 1 with fewer than 3 nodes].
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    replicas: u32,
    /// File with the bootstrap token of the node that --endpoint names: admin.token in its data folder.
    #[arg(long, env = "DROVER_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct MemberArgument(Member);

impl MemberArgument {
    pub(super) fn member(self) -> Member {
        self.0
    }
}

impl FromStr for MemberArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not NUMBER=PEER_ADDRESS,ADMIN_ADDRESS[,ZONE]");
        let (number, rest) = text.split_once('=').ok_or_else(form)?;
        let mut parts = rest.split(',').map(str::to_owned);
        let (Some(peer_address), Some(admin_address)) = (parts.next(), parts.next()) else {
            return Err(form());
        };
        let zone = parts.next().unwrap_or_default();
        let number = number.parse().map_err(|_| form())?;
        Ok(Self(Member { number, generation: 0, peer_address, admin_address, zone }))
    }
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    match command {
        Command::Init(arguments) => init(arguments, connection, out).await,
        Command::Status { shards, watch: false } => {
            let status = status(&connection.client()?).await?;
            show(&status, shards, out)
        }
        Command::Status { shards, watch: true } => watch(shards, connection, out).await,
        Command::JoinToken(arguments) => members::join_token(arguments, connection, out).await,
        Command::Drain(node) => members::drain(node, connection, out).await,
        Command::Upgrade(command) => upgrade::call(command, connection, out).await,
        Command::Rename(rename) => upgrade::rename(rename, connection, out).await,
        Command::Undrain(node) => members::undrain(node, connection, out).await,
        Command::Remove(node) => members::remove(node, connection, out).await,
        Command::Rebuild(replica) => members::rebuild(replica, connection, out).await,
        Command::Moves(command) => members::moves(command, connection, out).await,
        Command::Backup(command) => backup::call(command, connection, out).await,
        Command::Recover(arguments) => recover::call(arguments, out).await,
    }
}

async fn init(
    arguments: Init,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let token = files::read_text(&arguments.token_file.to_string_lossy())?;
    let client = connection.bootstrap_client(token.trim())?;
    let request = InitializeRequest {
        members: arguments.members.into_iter().map(MemberArgument::member).collect(),
        shard_count: arguments.shards,
        replication_factor: arguments.replicas,
    };
    let first = request.members.first().map(|member| member.admin_address.clone());
    let made = client.cluster().initialize(client.request(request)).await?.into_inner();
    show_made(&made, &first.unwrap_or_default(), out)
}

/// The one time that keys are shown unasked: without them nobody could do anything with the cluster.
fn show_made(made: &InitializeResponse, host: &str, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        let policies: Vec<_> = made.policies.iter().map(policies::policy_json).collect();
        return out.json(&json!({ "clusterId": made.cluster_id, "policies": policies }));
    }
    out.line(&format!("Cluster {} is made. Keep this connection string secret:", made.cluster_id))?;
    let admin = made
        .policies
        .iter()
        .find(|policy| policy.permissions().any(|p| p == Permission::ClusterAdmin));
    if let Some(admin) = admin {
        let (name, key) = (&admin.name, &admin.primary_key);
        out.line(&format!("HostName={host};SharedAccessKeyName={name};SharedAccessKey={key}"))?;
    }
    policies::print(&made.policies, out)
}

pub(super) async fn status(client: &Client) -> Result<ClusterStatus, Failure> {
    let request = client.request(GetStatusRequest {});
    Ok(client.cluster().get_status(request).await?.into_inner())
}

/// Until nobody reads it any more, or it is interrupted. What cannot be asked at the moment can be soon.
async fn watch(
    shards: bool,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    loop {
        let status = status(&client).await;
        out.clear()?;
        match status {
            Ok(status) => show(&status, shards, out)?,
            Err(failure) => out.line(&failure.to_string())?,
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn show(status: &ClusterStatus, shards: bool, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return out.json(&status_json(status));
    }
    let leaderless = status.shards.iter().filter(|shard| shard.leader.is_none()).count();
    let shard_count = status.shards.iter().filter(|shard| shard.shard.is_some()).count();
    out.line(&format!(
        "Cluster {}: {}, {} ({} without a leader), {}, feature level {}",
        cluster_name(status),
        counted(status.nodes.len() as u64, "node"),
        counted(shard_count as u64, "shard"),
        counted(leaderless as u64, "group"),
        counted(status.device_count, "device"),
        status.active_level,
    ))?;
    if let Some(outlook) = upgrade::outlook(status) {
        out.line(&outlook)?;
    }
    if !status.restoring.is_empty() {
        out.line(&format!(
            "It is being restored from backup {} and serves nobody until that is over: if it was broken off, give the same \
             drover cluster backup restore again",
            printable(&status.restoring)
        ))?;
    }
    out.table(&nodes_table(&status.nodes))?;
    let zones = Zones::of(status);
    if shards {
        out.table(&shards_table(&status.shards, &zones))?;
    }
    if let Some(problem) = zones.problem(status) {
        out.line(&problem)?;
    }
    if status.moves.is_empty() && !status.moves_paused {
        return Ok(());
    }
    members::show(status, out)
}

fn cluster_name(status: &ClusterStatus) -> String {
    match status.name.as_str() {
        "" => status.cluster_id.clone(),
        name => format!("{} ({})", printable(name), status.cluster_id),
    }
}

fn nodes_table(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "REACHABLE",
        "STATE",
        "ADDRESS",
        "ZONE",
        "VERSION",
        "LEVEL",
        "REPLICAS",
        "LEADERS",
        "SESSIONS",
        "DISK FREE",
        "SYNC",
        "DELAY",
        "PROBLEMS",
    ]);
    for node in nodes {
        let member = node.member.clone().unwrap_or_default();
        table.row([
            node_name(&member),
            if node.reachable { "yes".to_owned() } else { "NO".to_owned() },
            state_name(node).to_owned(),
            member.admin_address,
            member.zone,
            node.version.clone(),
            node.feature_level.to_string(),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.sessions.to_string(),
            format!("{} MiB", node.disk_free_bytes >> 20),
            format!("{} ms", node.sync_ms),
            format!("{} ms", node.delay_ms),
            node.problems.join("; "),
        ]);
    }
    table
}

fn state_name(node: &NodeStatus) -> &'static str {
    match node.state() {
        MemberState::Unspecified => "",
        MemberState::Active => "active",
        MemberState::Drained => "drained",
        MemberState::Removed => "leaving",
        MemberState::Restarting => "restarting",
    }
}

fn node_name(member: &Member) -> String {
    match member.generation {
        0 => member.number.to_string(),
        generation => format!("{}.{generation}", member.number),
    }
}

fn shards_table(shards: &[ShardStatus], zones: &Zones) -> Table {
    let mut table = Table::new(&[
        "SHARD",
        "LEADER",
        "TERM",
        "COMMITTED",
        "REPLICAS (LAG)",
        "ZONES",
        "FIRST",
        "NEXT",
        "DEVICES",
        "LOAD",
    ]);
    for shard in shards {
        table.row([
            shard.shard.map_or_else(|| "meta".to_owned(), |shard| shard.to_string()),
            shard.leader.map_or_else(|| "NONE".to_owned(), |leader| leader.to_string()),
            shard.term.to_string(),
            shard.committed_index.to_string(),
            shard
                .replicas
                .iter()
                .map(|replica| replica_text(shard, replica))
                .collect::<Vec<_>>()
                .join(" "),
            zones.of_shard(shard).into_iter().collect::<Vec<_>>().join(" "),
            shard.first_offset.to_string(),
            shard.next_offset.to_string(),
            shard.device_count.to_string(),
            format!("{} KiB/s", shard.load >> 10),
        ]);
    }
    table
}

/// The leader lags behind nobody.
fn replica_text(shard: &ShardStatus, replica: &ReplicaStatus) -> String {
    if shard.leader == Some(replica.node) && replica.problem.is_empty() {
        return replica.node.to_string();
    }
    let lag = replica.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string());
    match replica.problem.as_str() {
        "" => format!("{}({lag})", replica.node),
        problem => format!("{}({lag}: {problem})", replica.node),
    }
}

fn status_json(status: &ClusterStatus) -> Value {
    json!({
        "clusterId": status.cluster_id,
        "answeredBy": status.answered_by,
        "deviceCount": status.device_count,
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "shards": status.shards.iter().map(shard_json).collect::<Vec<_>>(),
        "moves": status.moves.iter().map(members::move_json).collect::<Vec<_>>(),
        "movesPaused": status.moves_paused,
        "name": status.name,
        "activeLevel": status.active_level,
        "restoring": (!status.restoring.is_empty()).then_some(&status.restoring),
        "upgradeHeld": status.upgrade_held,
    })
}

fn node_json(node: &NodeStatus) -> Value {
    let member = node.member.clone().unwrap_or_default();
    json!({
        "number": member.number,
        "generation": member.generation,
        "peerAddress": member.peer_address,
        "adminAddress": member.admin_address,
        "zone": member.zone,
        "reachable": node.reachable,
        "state": state_name(node),
        "version": node.version,
        "featureLevel": node.feature_level,
        "replicas": node.replicas,
        "leaders": node.leaders,
        "sessions": node.sessions,
        "started": values::time(node.started.as_ref()),
        "diskFreeBytes": node.disk_free_bytes,
        "syncMs": node.sync_ms,
        "delayMs": node.delay_ms,
        "problems": node.problems,
    })
}

fn shard_json(shard: &ShardStatus) -> Value {
    let replica = |replica: &ReplicaStatus| {
        json!({
            "node": replica.node,
            "matchedIndex": replica.matched_index,
            "lag": replica.lag,
            "problem": replica.problem,
        })
    };
    json!({
        "shard": shard.shard,
        "leader": shard.leader,
        "term": shard.term,
        "committedIndex": shard.committed_index,
        "replicas": shard.replicas.iter().map(replica).collect::<Vec<_>>(),
        "firstOffset": shard.first_offset,
        "nextOffset": shard.next_offset,
        "deviceCount": shard.device_count,
        "load": shard.load,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_number_two_addresses_and_perhaps_a_zone() {
        let member: MemberArgument = "2=10.0.0.2:7070,hub:7443,west".parse().expect("it is valid");
        assert_eq!((member.0.number, member.0.zone.as_str()), (2, "west"));
        assert_eq!(member.0.admin_address, "hub:7443");
        for bad in ["2", "x=a:1,b:2", "2=a:1"] {
            assert!(bad.parse::<MemberArgument>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_shows_nodes_and_on_request_shards_with_their_lag() {
        let member =
            Member { number: 1, admin_address: "hub:7443".to_owned(), ..Member::default() };
        let node = NodeStatus {
            member: Some(member),
            reachable: true,
            version: "0.1.0".to_owned(),
            disk_free_bytes: 3 << 20,
            sync_ms: 7,
            feature_level: 2,
            problems: vec!["disk is full".to_owned()],
            ..NodeStatus::default()
        };
        let replica = ReplicaStatus { node: 1, lag: Some(4), ..ReplicaStatus::default() };
        let (replicas, load) = (vec![replica], 5 << 10);
        let shard = ShardStatus { shard: Some(0), replicas, load, ..ShardStatus::default() };
        let status = ClusterStatus {
            cluster_id: "c".to_owned(),
            name: "North".to_owned(),
            active_level: 1,
            nodes: vec![node],
            shards: vec![shard],
            ..ClusterStatus::default()
        };
        let mut bytes = Vec::new();
        show(&status, true, &mut Output::new(&mut bytes, Form::People)).expect("memory takes it");
        assert_eq!(
            String::from_utf8(bytes).expect("it is text"),
            "Cluster North (c): 1 node, 1 shard (1 group without a leader), 0 devices, feature level 1\n\
             All nodes support feature level 2: it comes in a moment\n\
             NODE  REACHABLE  STATE  ADDRESS   ZONE  VERSION  LEVEL  REPLICAS  LEADERS  SESSIONS  DISK FREE  SYNC  DELAY  PROBLEMS\n\
             1     yes        -      hub:7443  -     0.1.0    2      0         0        0         3 MiB      7 ms  0 ms   disk is full\n\
             SHARD  LEADER  TERM  COMMITTED  REPLICAS (LAG)  ZONES  FIRST  NEXT  DEVICES  LOAD\n\
             0      NONE    0     0          1(4)            -      0      0     0        5 KiB/s\n"
        );
    }
}
