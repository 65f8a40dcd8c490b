//! What an instance's calls to its host lead to: one [`Context`] an instance, wherever it runs.

use super::{Acting, Asker};
use crate::abi::{HostCalls, HostCallsRef, Out, Slice, hand_out};
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Where a line of the log goes, with its [level](crate::abi::level).
type Log = Box<dyn Fn(u8, &str) + Send + Sync>;

/// What the host knows of one instance. A plug-in may keep what leads to it for ever, and so it is never freed: what it
/// logs and asks with is, when it is over.
pub struct Context {
    /// Once it may never act again the instance is over, whatever its code still does.
    acting: Acting,
    /// Nothing once it is over.
    open: RwLock<Option<Arc<Open>>>,
}

/// What an instance needs as long as it lives.
struct Open {
    log: Log,
    /// What it asks for services with, or why it cannot.
    asker: OnceLock<Result<Asker, String>>,
}

impl Context {
    /// Of an instance that logs there.
    #[must_use]
    pub fn new(log: impl Fn(u8, &str) + Send + Sync + 'static) -> &'static Self {
        let open = Open { log: Box::new(log), asker: OnceLock::new() };
        Box::leak(Box::new(Self { acting: Acting::default(), open: RwLock::new(Some(Arc::new(open))) }))
    }

    /// The functions that lead here.
    #[must_use]
    pub fn calls(&'static self) -> HostCallsRef {
        HostCalls { ctx: (&raw const *self).cast(), log, token, ask }.leak()
    }

    /// From here on it may ask for services, or is told why it cannot. Counts once.
    pub fn opened(&self, asker: Result<Asker, String>) {
        if let Some(open) = self.open() {
            // It is one instance, at one desk.
            let _ = open.asker.set(asker);
        }
    }

    /// See [`Acting::promoted`].
    pub fn promoted(&self, fence: u64) {
        self.acting.promoted(fence);
    }

    /// See [`Acting::leased`].
    pub fn leased(&self, until_us: u64) {
        self.acting.leased(until_us);
    }

    /// From here on nothing that the instance asks does anything.
    pub fn close(&self) {
        self.acting.end();
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        // What it asked with ends its connections: not under the lock.
        drop(open);
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.acting.is_over()
    }

    fn open(&self) -> Option<Arc<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let Some(open) = self.open() else { return Err("this instance is over".into()) };
        match open.asker.get() {
            Some(Ok(asker)) => asker.ask(request),
            Some(Err(why)) => Err(why.clone()),
            None => Err("nothing can be asked while the library is loaded".into()),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.open();
        let asker = open.as_ref().and_then(|open| open.asker.get());
        f.debug_struct("Context").field("acting", &self.acting).field("asker", &asker).finish()
    }
}

/// The context behind a pointer that a plug-in gives back.
fn behind(ctx: *const ()) -> &'static Context {
    // SAFETY: `calls` gave the pointer out, and a context is never freed.
    unsafe { &*ctx.cast::<Context>() }
}

extern "C" fn log(ctx: *const (), level: u8, text: Slice<'_>) {
    if let Some(open) = behind(ctx).open() {
        (open.log)(level, &String::from_utf8_lossy(text.as_slice()));
    }
}

extern "C" fn token(ctx: *const ()) -> u64 {
    behind(ctx).acting.token()
}

extern "C" fn ask(ctx: *const (), request: Slice<'_>, out: Out) -> u32 {
    hand_out(behind(ctx).ask(request.as_slice()), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_has_a_token_of_its_own_and_none_once_it_is_over() {
        let (one, other) = (Context::new(|_, _| {}), Context::new(|_, _| {}));
        let token = |context: &'static Context| {
            let calls = context.calls();
            calls.token()(calls.ctx())
        };
        one.promoted(7);
        assert_eq!(token(one), 0, "without a lease");
        one.leased(u64::MAX);
        other.leased(u64::MAX);
        assert_eq!((token(one), token(other)), (7, 0));
        one.close();
        one.promoted(8);
        assert_eq!(token(one), 0);
    }

    #[test]
    fn one_that_cannot_ask_is_told_why() {
        let context = Context::new(|_, _| {});
        assert!(context.ask(&[]).expect_err("not yet").contains("while the library is loaded"));
        context.opened(Err("its kernel is too old".into()));
        assert_eq!(context.ask(&[]), Err("its kernel is too old".into()));
        context.close();
        assert_eq!(context.ask(&[]), Err("this instance is over".into()));
    }
}
