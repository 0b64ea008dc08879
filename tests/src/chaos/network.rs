//! A network of namespaces: one for each node and one for the switch between them; and what goes wrong on its links.
//!
//! Faults are rules of nftables and a queue of tc inside a node's own namespace, so that nothing of the machine's network
//! is touched. Rules on packets that come in are enough for one direction: what a node sends arrives nowhere if the
//! others drop it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::ledger::Ledger;
use crate::program;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node's place in the network, from 0; [`Network::address`] has its address.
pub type NodeIndex = usize;

/// What is wrong with a node's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// Nothing comes in from these nodes.
    DropFrom(Vec<NodeIndex>),
    /// So many of 100 packets are lost, both ways.
    Loss(u8),
    /// Each segment of a TCP connection that comes in is answered with a reset.
    Reset,
    /// Bits per second that go out.
    Slow(u64),
}

/// The network.
#[derive(Debug)]
pub struct Network {
    names: Vec<String>,
    switch: String,
}

impl Network {
    /// Makes a network of `count` nodes.
    ///
    /// # Errors
    ///
    /// What the kernel or `ip` says.
    pub fn new(prefix: &str, count: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        for name in ["ip", "nft", "tc"] {
            program::need(name)?;
        }
        let network = Self {
            names: (0..count).map(|index| format!("{prefix}-{index}")).collect(),
            switch: format!("{prefix}-sw"),
        };
        for name in network.names.iter().chain([&network.switch]) {
            ledger.netns(name)?;
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let switch = &network.switch;
        ip(&["-n", switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", switch, "link", "set", "br0", "up"])?;
        for (index, name) in network.names.iter().enumerate() {
            let port = format!("p{index}");
            ip(&["-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", switch])?;
            ip(&["-n", name, "addr", "add", &format!("{}/24", network.address(index)), "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
            ip(&["-n", switch, "link", "set", &port, "master", "br0"])?;
            ip(&["-n", switch, "link", "set", &port, "up"])?;
        }
        Ok(network)
    }

    /// Returns the address of a node.
    pub fn address(&self, node: NodeIndex) -> String {
        format!("10.77.0.{}", node + 1)
    }

    /// Returns the file that stands for a node's namespace.
    pub fn namespace(&self, node: NodeIndex) -> PathBuf {
        Path::new("/run/netns").join(&self.names[node])
    }

    /// Lets faults be, all that a node's link is to have. Those it had before are gone.
    ///
    /// # Errors
    ///
    /// What `nft` or `tc` says.
    pub fn set_faults(&self, node: NodeIndex, faults: &[LinkFault]) -> Result<()> {
        let (mut rules_in, mut rules_out, mut rate) = (String::new(), String::new(), None);
        for fault in faults {
            match fault {
                LinkFault::DropFrom(nodes) => {
                    for other in nodes {
                        rules_in.push_str(&format!("ip saddr {} drop;\n", self.address(*other)));
                    }
                }
                LinkFault::Loss(percent) => {
                    let rule = format!("meta iifname \"eth0\" numgen random mod 100 < {percent} drop;\n");
                    rules_out.push_str(&rule.replace("iifname", "oifname"));
                    rules_in.push_str(&rule);
                }
                LinkFault::Reset => rules_in.push_str("meta iifname \"eth0\" ip protocol tcp reject with tcp reset;\n"),
                LinkFault::Slow(bits) => rate = Some(*bits),
            }
        }
        // `add` makes it be there to be deleted.
        let script = format!(
            "add table inet chaos\ndelete table inet chaos\ntable inet chaos {{\n\
             chain in {{ type filter hook input priority 0;\n{rules_in} }}\n\
             chain out {{ type filter hook output priority 0;\n{rules_out} }}\n}}\n"
        );
        let name = &self.names[node];
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), script)?;
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", name, "nft", "-f"]).arg(file.path());
        program::command_ok(&mut nft, PATIENCE)?;
        let mut old = Command::new("tc");
        old.args(["-n", name, "qdisc", "del", "dev", "eth0", "root"]);
        // There is none, as a rule.
        let _ = program::run(&mut old, PATIENCE)?;
        if let Some(bits) = rate {
            ensure!(bits >= 8000, "{bits} bit/s is no link");
            let mut tc = Command::new("tc");
            tc.args(["-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &format!("{bits}bit")]);
            tc.args(["burst", "64kb", "latency", "400ms"]);
            program::command_ok(&mut tc, PATIENCE)?;
        }
        Ok(())
    }

    /// Takes all faults of all links away.
    ///
    /// # Errors
    ///
    /// As [`Network::set_faults`].
    pub fn heal(&self) -> Result<()> {
        (0..self.names.len()).try_for_each(|node| self.set_faults(node, &[]))
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    program::command_ok(&mut command, PATIENCE).map(drop)
}
