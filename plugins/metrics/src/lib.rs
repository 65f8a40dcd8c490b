//! Serves what each kernel counts and measures of itself to Prometheus.
//!
//! ```text
//! dvm plugin load metrics --stateless
//! dvm plugin load metrics --stateless -c listen=unix:/run/user/1000/dvm-{member}.metrics
//! dvm call metrics '{"status":true}' --query --member k0
//! ```
//! Every member's instance serves its own kernel: it asks it anew for each scrape, and no scrape is ordered.

mod listen;
mod server;
mod text;

use dvm_plugin_api::{Error, Host, Meta, Plugin, Result, export_plugin};
use listen::Address;
use serde::{Deserialize, Serialize};
use server::{Counts, Server};

/// Where a scraper finds the first kernel of a host, the second, and so on.
const LISTEN: &str = "127.0.0.1:9464-9495";

/// What `-c listen=…` sets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    listen: Listen,
}

/// One address or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Listen {
    One(String),
    Several(Vec<String>),
}

impl Default for Listen {
    fn default() -> Self {
        Self::One(LISTEN.into())
    }
}

impl Config {
    fn addresses(&self, host: &Host) -> Result<Vec<Address>> {
        let texts = match &self.listen {
            Listen::One(text) => std::slice::from_ref(text),
            Listen::Several(texts) => texts,
        };
        if texts.is_empty() {
            return Err(Error::new("`listen` names no address"));
        }
        texts.iter().map(|text| Address::parse(text, &host.member()).map_err(Error::new)).collect()
    }
}

/// The only thing to ask.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    #[serde(rename = "status")]
    _status: bool,
}

/// How it fares.
#[derive(Serialize)]
struct Status {
    /// Where this member's instance listens.
    listen: Vec<String>,
    #[serde(flatten)]
    counts: Counts,
}

struct Metrics {
    host: Host,
    server: Server,
}

impl Plugin for Metrics {
    type Config = Config;
    type Command = Command;
    type Reply = Status;

    fn validate(config: &Config, host: &Host) -> Result<()> {
        config.addresses(host)?.iter().try_for_each(|address| address.check().map_err(Error::new))
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        let server = Server::start(config.addresses(&host)?).map_err(Error::new)?;
        host.log(format!("metrics at {}", server.listen().join(", ")));
        Ok(Self { host, server })
    }

    fn apply(&mut self, _: Command, _: &Meta) -> Result<Status> {
        Err(Error::new("each member serves its own metrics: ask one of them, with --query"))
    }

    fn query(&self, _: Command) -> Result<Status> {
        Ok(Status { listen: self.server.listen().to_vec(), counts: self.server.counts() })
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        let addresses = config.addresses(&self.host)?;
        // What both have must be free for the new one.
        self.server.stop();
        self.server = Server::start(addresses).map_err(Error::new)?;
        self.host.log(format!("metrics at {}", self.server.listen().join(", ")));
        Ok(())
    }
}

export_plugin!(Metrics, stateless);
