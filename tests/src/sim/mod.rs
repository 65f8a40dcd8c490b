//! A deterministic simulator of a whole DVM: production members, a simulated world.
//!
//! One seed decides everything: how many members there are, their settings, what clients ask for, how the network
//! behaves and what goes wrong when. A run gathers the first members, lets faults strike for a while (phase one:
//! nothing may ever be *wrong*), then ends all faults and demands progress (phase two: everything must become
//! *right* again in bounded time). The idea is TigerBeetle's (`src/vopr.zig`); the network as a value is str0m's.
//!
//! ```text
//!   clients ──submit──► process (Member + shell) ──outputs──► net, links ──inputs──► other processes
//!      ▲                    │                                   ▲
//!      └──────answers───────┤                                   └── faults: planned, or aimed at protocol points
//!                           ▼
//!                       checkers: histories as a tree, ballots on the wire, requests and their receipts
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `options`, `faults` | what a seed decides beforehand; both print themselves |
//! | `queue`, `world` | time, events, and how inputs reach a member |
//! | `process`, `shell` | one process, and how its outputs are carried out |
//! | `net`, `link`, `wires` | reachability and delay; ring links |
//! | `clients` | what is asked, and asked again |
//! | `strikes` | how faults strike and end |
//! | `tree`, `ballots`, `reports`, `requests`, `actors`, `checker` | the invariants, from the outside |
//! | `end` | stages of a run, and every legal end |
//! | `run`, `shrink`, `figures`, `trace` | playing, making smaller, counting, telling |
//! | `mutant` | deliberate mistakes that the checkers must find |

mod actors;
mod ballots;
mod checker;
mod clients;
mod dice;
mod end;
mod failure;
mod faults;
mod figures;
mod link;
mod mutant;
mod net;
mod options;
mod process;
mod queue;
mod reports;
mod requests;
mod run;
mod shell;
mod shrink;
mod strikes;
mod trace;
mod tree;
mod wires;
mod world;

pub use end::End;
pub use failure::{Class, Failure};
pub use faults::{Aim, Fault, FaultKind, Plan, Point, Strike};
pub use figures::Figures;
pub use mutant::Mutant;
pub use options::{Execution, Level, Noise, Options, Work};
pub use run::{Report, Run};
pub use shrink::shrink;
pub use trace::Tracer;
