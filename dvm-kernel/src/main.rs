//! The kernel process of a distributed virtual machine.
//!
//! `dvm-kernel --bootstrap -` reads one line of JSON from its standard input, becomes a member, says so in one line on
//! its standard output, and lets go of whoever started it. What it is made of, from the outside in:
//!
//! ```text
//! start      from a launcher's line to a running member, and to its end
//! local      clients of this host           ┐ on a thread of their own, which may be slow
//! peer       questions between kernels      ┘
//! plugins    this member's plug-in instances, on another one
//! services   what an instance asks of its host, and processes that plug-ins start
//! feed       what the ring's task tells the others, in order
//! ring       the task that owns the member  ┐ on the main thread, which is never kept waiting
//! net        connections between kernels    ┘
//! security   key, certificates, tickets
//! tally      what has been counted, by all of them
//! ```

mod clock;
mod feed;
mod local;
mod log;
mod net;
mod peer;
mod plugins;
mod ring;
mod security;
mod services;
mod start;
mod tally;

use clap::Parser;
use std::process::ExitCode;

/// What the ring's thread allocates another one frees, and bodies, entries and records of all sizes live as long as the
/// kept history: the system's allocator took a third of a full ring's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A kernel of a distributed virtual machine; `dvm up` starts them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Read how to begin from standard input, one line of JSON
    #[arg(long, value_name = "-", value_parser = ["-"])]
    bootstrap: String,
    /// Be the kernel itself: set by the first process for the second
    #[arg(long, hide = true)]
    detached: bool,
}

fn main() -> ExitCode {
    // It is run by `/proc/self/exe`, and those who list processes would see `exe`. Without a name of ours they do.
    let _ = rustix::thread::set_name(c"dvm-kernel");
    match std::env::args_os().nth(1) {
        Some(word) if word == "plugin-host" => return plugins::child::main(),
        Some(word) if word == "process-host" => return services::keeper::main(),
        _ => {}
    }
    let arguments = Arguments::parse();
    if arguments.detached { start::detached() } else { start::front() }
}
