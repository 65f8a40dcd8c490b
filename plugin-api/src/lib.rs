//! What plug-in authors and applications of a distributed virtual machine (DVM) build against.
//!
//! A plug-in is a library that implements [`Plugin`] and says [`export_plugin!`]. Loaded into a DVM, it runs as one
//! instance on every member; a command is ordered among all others and applied by every instance, so that all have the
//! same state, and a member can be lost without losing anything. A whole one:
//!
//! ```
//! use dvm_plugin_api::{Error, Host, Meta, Plugin, Result, export_plugin};
//! use serde::{Deserialize, Serialize};
//! use std::collections::BTreeMap;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! pub struct Config {
//!     /// How many names fit.
//!     #[serde(default = "hundred")]
//!     limit: usize,
//! }
//!
//! fn hundred() -> usize {
//!     100
//! }
//!
//! #[derive(Deserialize)]
//! #[serde(rename_all = "lowercase")]
//! pub enum Command {
//!     Add { name: String, number: String },
//!     Find { name: String },
//! }
//!
//! #[derive(Serialize)]
//! pub struct Reply {
//!     number: Option<String>,
//! }
//!
//! /// A telephone book that every member holds.
//! pub struct Book {
//!     config: Config,
//!     numbers: BTreeMap<String, String>,
//! }
//!
//! impl Plugin for Book {
//!     type Config = Config;
//!     type Command = Command;
//!     type Reply = Reply;
//!
//!     fn start(config: Config, host: Host) -> Result<Self> {
//!         host.log(format!("a book on {}, one of {}", host.member(), host.size()));
//!         Ok(Self { config, numbers: BTreeMap::new() })
//!     }
//!
//!     fn apply(&mut self, command: Command, _meta: &Meta) -> Result<Reply> {
//!         match command {
//!             Command::Add { .. } if self.numbers.len() == self.config.limit => Err(Error::new("the book is full")),
//!             Command::Add { name, number } => Ok(Reply { number: self.numbers.insert(name, number) }),
//!             find => self.query(find),
//!         }
//!     }
//!
//!     fn query(&self, command: Command) -> Result<Reply> {
//!         match command {
//!             Command::Find { name } => Ok(Reply { number: self.numbers.get(&name).cloned() }),
//!             Command::Add { .. } => Err(Error::new("a query adds nothing")),
//!         }
//!     }
//!
//!     fn snapshot(&self) -> Vec<u8> {
//!         self.numbers.iter().map(|(name, number)| format!("{name}\t{number}\n")).collect::<String>().into_bytes()
//!     }
//!
//!     fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
//!         let lines = std::str::from_utf8(snapshot)?.lines();
//!         self.numbers = lines.filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.into(), b.into())).collect();
//!         Ok(())
//!     }
//! }
//!
//! export_plugin!(Book);
//! ```
//!
//! Built as a `cdylib`, it is loaded with `dvm plugin load ./libbook.so` and called with
//! `dvm call book '{"add":{"name":"Ada","number":"1815"}}'`.
//!
//! [`service`] is what an instance may ask of its host; [`client`] is for applications, [`local`] is what clients and a kernel say to each other, [`place`] where they meet.

pub mod abi;
mod attach;
pub mod client;
pub mod export;
pub mod host;
pub mod local;
pub mod manifest;
pub mod place;
mod plugin;
pub mod service;
mod services;
pub mod testing;
mod worker;

#[doc(hidden)]
pub use attach::ATTACH_VERSION;
pub use attach::{Attached, Driven, Ender, attach, attach_driven};
pub use plugin::{Error, Event, Host, Meta, Place, Plugin, Result, Role};
pub use services::Program;
pub use worker::{WORK_MAX, Work, Worker};
