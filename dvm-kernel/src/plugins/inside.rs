//! What of plug-ins is inside this kernel: images that stay, and threads that were told to end.
//!
//! No image is ever unmapped: code in Rust leaves a destructor for each thread it ran on, and the process has about a
//! thousand keys for them. So unloading is logical, and an image is used again for the same hash.
//!
//! A thread cannot be killed. One that is told to end and does not is abandoned: what its instance asks of the kernel
//! does nothing any more ([`Context::close`](dvm_plugin_api::host::Context::close)), and it counts as quarantined until it
//! ends after all. A kernel with too many of them starts no more.

use dvm_core::ids::Name;
use dvm_plugin_api::host::Module;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Different libraries that one kernel maps.
pub(super) const IMAGES_MAX: usize = 128;
/// Threads that were told to end and did not, beyond which no instance is started inside the kernel.
pub(super) const QUARANTINE_MAX: usize = 4;
/// How long a thread may take to end before it counts as quarantined.
const GRACE: Duration = Duration::from_secs(1);

/// A library that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// BLAKE3 of the file.
    pub(crate) hash: [u8; 32],
    /// The plug-in that brought it.
    pub(crate) plugin: Name,
    /// How often it was opened; every time but the first it was here.
    pub(crate) opened: u64,
}

/// A thread that does not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantined {
    /// Its plug-in.
    pub(crate) plugin: Name,
    /// How long ago it was told to, milliseconds.
    pub(crate) since_ms: u64,
}

/// Both, of one kernel.
#[derive(Debug)]
pub(super) struct Inside {
    images_max: usize,
    images: Mutex<Vec<(Image, Module)>>,
    /// Held while a library is mapped, which may take as long as its initializers like.
    mapping: Mutex<()>,
    /// Threads that were told to end: whose, and when.
    ending: watch::Sender<BTreeMap<u64, (Name, Instant)>>,
}

impl Inside {
    /// With room for so many images.
    pub(super) fn new(images_max: usize) -> Self {
        let (images, mapping, ending) = (Mutex::default(), Mutex::default(), watch::Sender::default());
        Self { images_max, images, mapping, ending }
    }

    /// What is mapped, in the order in which it came.
    pub(super) fn images(&self) -> Vec<Image> {
        lock(&self.images).iter().map(|(image, _)| image.clone()).collect()
    }

    /// The image with this hash; `map` makes it if it is not here.
    ///
    /// # Errors
    /// There are too many, or those of `map`; as a code with its reason.
    pub(super) fn open(
        &self,
        hash: [u8; 32],
        plugin: &Name,
        map: impl FnOnce() -> Result<Module, (&'static str, String)>,
    ) -> Result<Module, (&'static str, String)> {
        let _one_at_a_time = lock(&self.mapping);
        if let Some((image, module)) = lock(&self.images).iter_mut().find(|(image, _)| image.hash == hash) {
            image.opened += 1;
            return Ok(*module);
        }
        if lock(&self.images).len() >= self.images_max {
            let most = self.images_max;
            let reason = format!(
                "this kernel holds {most} images of plug-ins, as many as it may, and gives none back; start another \
                 kernel in its place, or load with --placement process"
            );
            return Err(("limit", reason));
        }
        let module = map()?;
        lock(&self.images).push((Image { hash, plugin: plugin.clone(), opened: 1 }, module));
        Ok(module)
    }

    /// Waits for a thread that was told to end, as long as it takes, on a thread that does nothing else.
    pub(super) fn see_off(self: &Arc<Self>, plugin: Name, thread: JoinHandle<()>) {
        let mut number = 0;
        self.ending.send_modify(|ending| {
            number = ending.last_key_value().map_or(0, |(last, _)| last + 1);
            ending.insert(number, (plugin, Instant::now()));
        });
        let inside = self.clone();
        let wait = move || {
            // A panic of its own was told when it happened.
            let _ = thread.join();
            inside.ending.send_modify(|ending| drop(ending.remove(&number)));
        };
        if let Err(error) = std::thread::Builder::new().name("plugin-end".into()).spawn(wait) {
            tracing::warn!(%error, "nobody waits for a plug-in's thread; it counts as one that does not end");
        }
    }

    /// Waits for those that were told to end just now.
    pub(super) async fn settle(&self) {
        let mut seen = self.ending.subscribe();
        loop {
            let latest = seen.borrow_and_update().values().map(|(_, since)| *since + GRACE).max();
            let Some(latest) = latest.filter(|latest| Instant::now() < *latest) else { return };
            // Either way it is looked at again.
            let _ = timeout_at(latest, seen.changed()).await;
        }
    }

    /// Whether one more instance may be started.
    ///
    /// # Errors
    /// Too many threads do not end.
    pub(super) async fn admit(&self) -> Result<(), String> {
        if self.ending.borrow().len() >= QUARANTINE_MAX {
            self.settle().await;
        }
        match self.ending.borrow().len() {
            count if count < QUARANTINE_MAX => Ok(()),
            count => Err(format!(
                "{count} threads of plug-ins hang in this kernel, where {QUARANTINE_MAX} are too many; start another \
                 kernel in its place, or load with --placement process"
            )),
        }
    }

    /// Threads that do not end.
    pub(super) fn quarantined(&self) -> Vec<Quarantined> {
        let ending = self.ending.borrow();
        let late = ending.values().filter(|(_, since)| since.elapsed() >= GRACE);
        let told = late.map(|(plugin, since)| Quarantined {
            plugin: plugin.clone(),
            since_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        told.collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A thread that ends when the other end is dropped.
    fn hung() -> (Sender<()>, JoinHandle<()>) {
        let (end, ended): (Sender<()>, Receiver<()>) = channel();
        (end, std::thread::spawn(move || assert!(ended.recv().is_err())))
    }

    #[tokio::test]
    async fn threads_that_hang_are_told_of_count_and_are_forgotten_when_they_end() {
        let inside = Arc::new(Inside::new(1));
        let mut ends = Vec::new();
        for _ in 0..QUARANTINE_MAX {
            assert_eq!(inside.admit().await, Ok(()));
            let (end, thread) = hung();
            inside.see_off("slow".into(), thread);
            ends.push(end);
        }
        let refused = inside.admit().await.expect_err("too many");
        assert!(refused.contains("4 threads of plug-ins hang"), "{refused}");
        assert_eq!(inside.quarantined().len(), QUARANTINE_MAX);
        assert_eq!(inside.quarantined()[0].plugin, "slow");
        ends.clear();
        let mut seen = inside.ending.subscribe();
        seen.wait_for(BTreeMap::is_empty).await.expect("it is there");
        assert_eq!((inside.admit().await, inside.quarantined().len()), (Ok(()), 0));
    }

    #[tokio::test]
    async fn nobody_waits_for_what_hangs_for_long() {
        let inside = Arc::new(Inside::new(1));
        let (end, thread) = hung();
        inside.see_off("slow".into(), thread);
        inside.settle().await;
        assert_eq!(inside.quarantined().len(), 1);
        inside.settle().await;
        drop(end);
    }
}
