//! An instance as a thread of this kernel: what a process is for the others, with the same loop at its end.

use super::child::{hosted, load};
use super::context::{Speaker, to_log};
use super::inside::Inside;
use crate::peer::Blob;
use dvm_core::ids::Name;
use dvm_plugin_api::host::{Context, Hosting};
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// As a program's first thread has it: a plug-in is not to see a difference.
const STACK: usize = 8 << 20;

/// A thread that holds a plug-in. Dropping it tells it to end, with the end of the socket; one that does not is left
/// behind.
#[derive(Debug)]
pub(super) struct Thread {
    inside: Arc<Inside>,
    plugin: Name,
    context: &'static Context,
    /// Closed at its end.
    alive: mpsc::Sender<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts one; the socket is the kernel's end.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn start(
        inside: &Arc<Inside>,
        speaker: Speaker,
        library: Arc<Blob>,
    ) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let socket = UnixStream::from_std(ours)?;
        let plugin = speaker.plugin.clone();
        let context = to_log(speaker);
        let (alive, ended) = mpsc::channel(1);
        let hosted = hosted(context, {
            let (inside, plugin) = (inside.clone(), plugin.clone());
            move |open| {
                inside.open(open.hash, &plugin, || {
                    let library = library.as_fd().try_clone_to_owned();
                    load(library.map_err(|error| ("limit", error.to_string()))?)
                })
            }
        });
        let mut hosting = Hosting::new(theirs, hosted, Vec::new());
        let run = move || {
            if let Err(error) = hosting.run(None) {
                tracing::debug!(%error, "a plug-in's thread ends");
            }
            hosting.hosted().end();
            drop(ended);
        };
        let thread =
            std::thread::Builder::new().name(format!("plugin-{plugin}")).stack_size(STACK).spawn(run)?;
        let (inside, thread) = (inside.clone(), Some(thread));
        Ok((Self { inside, plugin, context, alive, thread }, socket))
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        self.alive.closed().await;
    }

    /// Whatever its instance asks of the kernel does nothing any more.
    pub(super) fn close(&self) {
        self.context.close();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.close();
        let thread = self.thread.take().expect("it is waited for once");
        self.inside.see_off(std::mem::take(&mut self.plugin), thread);
    }
}
