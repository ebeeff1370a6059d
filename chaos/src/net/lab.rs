//! Network namespaces for the nodes of a run: one each, joined by a bridge that lives in one more, where the clients are.
//!
//! Nothing of it touches the machine's own network, and a namespace takes its interfaces, addresses and rules with it when
//! it goes. Their names carry the number of the process that made them, so that whatever a killed run left is found at
//! the next start.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context as _;

use super::rules::{Rate, Rule, TABLE, delayed, hits, script, slow};
use crate::command::{run, run_with};

const PREFIX: &str = "drover-chaos-";
/// `ip netns` keeps them here.
const FOLDER: &str = "/run/netns";
const INTERFACE: &str = "eth0";
const BRIDGE: &str = "bridge0";

/// The namespaces of one run.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    nodes: usize,
}

/// Why this machine can make no namespaces; `None` if it can.
pub async fn obstacle() -> Option<String> {
    let name = format!("{PREFIX}{}-probe", std::process::id());
    let made = async {
        run(&format!("ip netns add {name}")).await?;
        let rules = script(&[Rule::Lose(1)]);
        run_with(&format!("nsenter --net={FOLDER}/{name} -- nft -f -"), &rules).await
    };
    let outcome = made.await;
    // Where it was not made, there is nothing to take away.
    drop(run(&format!("ip netns delete {name}")).await);
    outcome.err().map(|error| format!("{error:#}"))
}

impl Lab {
    /// Makes namespaces for `nodes` nodes and their clients.
    pub async fn create(nodes: usize) -> anyhow::Result<Self> {
        let lab = Self::of(std::process::id(), nodes);
        let made = lab.make().await;
        if made.is_err() {
            lab.remove().await;
        }
        made.map(|()| lab)
    }

    /// The one that process `owner` made.
    pub fn of(owner: u32, nodes: usize) -> Self {
        Self { name: format!("{PREFIX}{owner}"), nodes }
    }

    async fn make(&self) -> anyhow::Result<()> {
        let hub = self.hub();
        run(&format!("ip netns add {hub}")).await?;
        let bridge = format!(
            "link set lo up\nlink add name {BRIDGE} type bridge\nlink set {BRIDGE} up\naddress add {}/24 dev {BRIDGE}\n",
            Self::client_address()
        );
        run_with(&format!("ip -netns {hub} -batch -"), &bridge).await?;
        for node in 0..self.nodes {
            let (name, address) = (self.namespace(node), self.address(node));
            run(&format!("ip netns add {name}")).await?;
            let link = format!(
                "link add name node{node} type veth peer name {INTERFACE} netns {name}\n\
                 link set node{node} master {BRIDGE} up\n"
            );
            run_with(&format!("ip -netns {hub} -batch -"), &link).await?;
            let own = format!(
                "link set lo up\nlink set {INTERFACE} up\naddress add {address}/24 dev {INTERFACE}\n"
            );
            run_with(&format!("ip -netns {name} -batch -"), &own).await?;
        }
        Ok(())
    }

    /// Takes everything away; what is in use goes when its last process ends.
    pub async fn remove(&self) {
        for name in (0..self.nodes).map(|node| self.namespace(node)).chain([self.hub()]) {
            if let Err(error) = run(&format!("ip netns delete {name}")).await {
                tracing::debug!("{error:#}");
            }
        }
    }

    fn hub(&self) -> String {
        format!("{}-clients", self.name)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{}", self.name, node + 1)
    }

    pub fn address(&self, node: usize) -> Ipv4Addr {
        let last = u8::try_from(node + 1).expect("a run has fewer than 250 nodes");
        Ipv4Addr::new(10, 231, 0, last)
    }

    pub fn client_address() -> Ipv4Addr {
        Ipv4Addr::new(10, 231, 0, 254)
    }

    /// What must stand before a command so that it runs where `node` is.
    pub fn inside(&self, node: usize) -> Vec<String> {
        enter(&self.namespace(node))
    }

    /// The same for clients.
    pub fn inside_clients(&self) -> Vec<String> {
        enter(&self.hub())
    }

    /// Lets `node` suffer these rules and no others; says how many packets the former ones hit.
    pub async fn suffer(&self, node: usize, rules: &[Rule]) -> anyhow::Result<u64> {
        let inside = self.inside(node).join(" ");
        // Without a table there were no rules.
        let listing = run(&format!("{inside} nft list table {TABLE}")).await.unwrap_or_default();
        run_with(&format!("{inside} nft -f -"), &script(rules))
            .await
            .with_context(|| format!("rules of node {}", node + 1))?;
        Ok(hits(&listing))
    }

    /// Slows down what `node` sends, or lets it go at full speed again; says how many packets had to wait until then.
    pub async fn throttle(&self, node: usize, rate: Option<Rate>) -> anyhow::Result<u64> {
        let inside = self.inside(node).join(" ");
        let listing = run(&format!("{inside} tc -s qdisc show dev {INTERFACE}")).await?;
        let command = rate.map_or_else(
            || format!("tc qdisc delete dev {INTERFACE} root"),
            |rate| slow(INTERFACE, rate),
        );
        run(&format!("{inside} {command}")).await?;
        Ok(delayed(&listing))
    }
}

fn enter(namespace: &str) -> Vec<String> {
    vec!["nsenter".to_owned(), format!("--net={FOLDER}/{namespace}"), "--".to_owned()]
}

/// Takes away the namespaces of runs whose process is gone; how many there were.
pub async fn remove_stale() -> anyhow::Result<usize> {
    let Ok(folder) = fs::read_dir(FOLDER) else { return Ok(0) };
    let mut removed = 0;
    for entry in folder {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_stale(&name) {
            run(&format!("ip netns delete {name}")).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_stale(name: &str) -> bool {
    let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    owner.is_some_and(|owner| {
        owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists()
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::Duration;

    use tokio::process::Command;

    use super::*;

    /// Whether `from` reaches a listener at `to`, in one attempt of a second. Bash speaks TCP.
    async fn reaches(lab: &Lab, from: usize, to: Ipv4Addr) -> Result<(), String> {
        let line = format!("exec 3<>/dev/tcp/{to}/7");
        let inside = lab.inside(from);
        let output = Command::new("timeout")
            .arg("1")
            .args(&inside)
            .args(["bash", "-c", &line])
            .stderr(Stdio::piped())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    /// Listens on port 7 of a node for as long as it is held.
    fn listen(lab: &Lab, node: usize) -> tokio::process::Child {
        let serve = format!(
            "import socket,time; s=socket.create_server((\"{}\",7),backlog=99); time.sleep(60)",
            lab.address(node)
        );
        let inside = lab.inside(node);
        let mut command = Command::new(&inside[0]);
        command.args(&inside[1..]).args(["python3", "-c", &serve]).kill_on_drop(true);
        command.spawn().unwrap()
    }

    async fn until_reached(lab: &Lab, from: usize, to: usize) {
        for _ in 0..50 {
            if reaches(lab, from, lab.address(to)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("node {to} does not listen");
    }

    #[tokio::test]
    async fn each_direction_of_a_link_is_cut_reset_and_healed_for_itself() {
        if let Some(obstacle) = obstacle().await {
            eprintln!("left out: {obstacle}");
            return;
        }
        let lab = Lab::create(3).await.unwrap();
        let _listeners = [listen(&lab, 0), listen(&lab, 1)];
        until_reached(&lab, 1, 0).await;
        until_reached(&lab, 0, 1).await;
        let (zero, one) = (lab.address(0), lab.address(1));

        lab.suffer(0, &[Rule::Drop(one)]).await.unwrap();
        assert!(reaches(&lab, 1, zero).await.is_err(), "what 1 sends is dropped");
        assert!(reaches(&lab, 2, zero).await.is_ok(), "2 is not concerned");
        let hits = lab.suffer(0, &[Rule::Reset(one)]).await.unwrap();
        assert!(hits > 0, "the rule counts what it dropped");
        let refused = reaches(&lab, 1, zero).await.unwrap_err();
        assert!(refused.contains("refused"), "a reset is an answer: {refused}");
        assert!(lab.suffer(0, &[]).await.unwrap() > 0);
        assert!(reaches(&lab, 1, zero).await.is_ok(), "healed");
        assert_eq!(lab.suffer(0, &[]).await.unwrap(), 0);

        lab.throttle(0, Some(Rate { kilobits_per_second: 1000, latency_ms: 400 })).await.unwrap();
        assert!(reaches(&lab, 1, zero).await.is_ok(), "slow is not cut");
        lab.throttle(0, None).await.unwrap();
        lab.remove().await;
        let left = fs::read_dir(FOLDER).unwrap().filter_map(Result::ok);
        let name = format!("{}-", lab.name);
        assert!(
            !left.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        );
    }

    #[test]
    fn only_a_namespace_whose_process_is_gone_is_stale() {
        assert!(is_stale("drover-chaos-4194999-clients"));
        assert!(!is_stale(&format!("drover-chaos-{}-1", std::process::id())));
        assert!(!is_stale("drover-chaos-mine"));
        assert!(!is_stale("4194999-clients"));
    }
}
