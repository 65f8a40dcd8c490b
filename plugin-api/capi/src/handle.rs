//! A handle: a session for calls, a subscription for events, and what the last failure was.
//!
//! Callbacks may call whatever they like with the handle that they know, so nothing stays borrowed while they run.

use crate::event::{CEvent, Told};
use crate::trouble::{Trouble, c_text};
use dvm_plugin_api::Driven;
use dvm_plugin_api::client::{Client, Events, Families, Filter, Next, Target};
use dvm_plugin_api::host::Module;
use dvm_plugin_api::local::{Answer, EventDoc, Failure, FailureCode, Request, Since};
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null;
use std::time::Duration;

/// How the client calls itself in the kernel's log.
const CLIENT: &str = "libdvm";

/// Events taken by one dispatch: a loop has others to serve.
const DISPATCH: c_int = 64;

/// A callback.
pub(crate) type EventFn = unsafe extern "C" fn(*const CEvent, *mut c_void);

/// `dvm_t`.
#[derive(Debug)]
pub struct Dvm {
    /// The process that opened it, and may use it.
    process: u32,
    uri: CString,
    client: RefCell<Client>,
    events: RefCell<Events>,
    /// What the strings of the last event point into.
    told: RefCell<Option<Told>>,
    through: RefCell<CString>,
    callbacks: RefCell<Vec<Callback>>,
    trouble: RefCell<Trouble>,
    dispatching: Cell<bool>,
    /// A callback has closed it.
    closed: Cell<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Callback {
    mask: Families,
    function: EventFn,
    argument: *mut c_void,
}

impl Callback {
    fn is(&self, function: EventFn, argument: *mut c_void) -> bool {
        std::ptr::fn_addr_eq(self.function, function) && self.argument == argument
    }
}

/// Callbacks are being called.
struct Dispatching<'a>(&'a Cell<bool>);

impl<'a> Dispatching<'a> {
    fn begin(flag: &'a Cell<bool>) -> Self {
        flag.set(true);
        Self(flag)
    }
}

impl Drop for Dispatching<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Dvm {
    pub(crate) fn open(uri: Option<&str>) -> Result<Self, Trouble> {
        let client = Client::connect(Target::find(uri, CLIENT)?)?;
        let events = Events::new(client.target().clone())?;
        Ok(Self {
            process: std::process::id(),
            uri: c_text(&client.target().uri()),
            client: RefCell::new(client),
            events: RefCell::new(events),
            told: RefCell::new(None),
            through: RefCell::default(),
            callbacks: RefCell::default(),
            trouble: RefCell::default(),
            dispatching: Cell::new(false),
            closed: Cell::new(false),
        })
    }

    pub(crate) fn check_process(&self) -> Result<(), Trouble> {
        let hint = "close it here with dvm_close, and open one of your own with dvm_open";
        Trouble::unless_here(self.process, "handle", hint)
    }

    pub(crate) fn fd(&self) -> c_int {
        self.events.borrow().as_fd().as_raw_fd()
    }

    /// Asks for events; of changes of keys for those of keys that begin so.
    pub(crate) fn subscribe(
        &self,
        mask: Families,
        key_prefix: Option<&str>,
        cursor: Option<&str>,
    ) -> Result<(), Trouble> {
        check_mask(mask)?;
        if mask == Families(0) {
            return Err(Trouble::usage(
                "the mask asks for no events: DVM_ALL asks for what `dvm events` tells",
            ));
        }
        let since = cursor.map_or(Ok(Since::Now), str::parse).map_err(Trouble::usage)?;
        let kinds = (mask | Families::STREAM).kinds();
        self.told.take();
        let key_prefix = key_prefix.map(str::to_owned);
        Ok(self.events.borrow_mut().subscribe(since, Filter { kinds, follow: true, key_prefix })?)
    }

    /// The next event, if one is here; its strings live in the handle.
    pub(crate) fn next_event(&self) -> Result<Option<CEvent>, Trouble> {
        self.told.take();
        let Some(event) = self.take()? else { return Ok(None) };
        let told = Told::new(&event);
        let view = told.view();
        // Moving it moves no string.
        *self.told.borrow_mut() = Some(told);
        Ok(Some(view))
    }

    pub(crate) fn on_event(
        &self,
        mask: Families,
        function: EventFn,
        argument: *mut c_void,
    ) -> Result<(), Trouble> {
        check_mask(mask)?;
        let mut callbacks = self.callbacks.borrow_mut();
        let known = callbacks.iter().position(|callback| callback.is(function, argument));
        match known {
            Some(at) if mask == Families(0) => drop(callbacks.remove(at)),
            Some(at) => callbacks[at].mask = mask,
            None if mask == Families(0) => {}
            None => callbacks.push(Callback { mask, function, argument }),
        }
        Ok(())
    }

    pub(crate) fn dispatch(&self) -> Result<c_int, Trouble> {
        if self.dispatching.get() {
            return Err(Trouble::usage(
                "a callback must not call dvm_dispatch with the handle that calls it",
            ));
        }
        self.told.take();
        let _dispatching = Dispatching::begin(&self.dispatching);
        self.take_all()
    }

    fn take_all(&self) -> Result<c_int, Trouble> {
        let mut taken = 0;
        while taken < DISPATCH && !self.closed.get() {
            match self.take() {
                Ok(Some(event)) => self.tell(&Told::new(&event)),
                Ok(None) => break,
                // It comes again when it is asked for next.
                Err(_) if taken > 0 => break,
                Err(trouble) => return Err(trouble),
            }
            taken += 1;
        }
        Ok(taken)
    }

    fn tell(&self, told: &Told) {
        let all = self.callbacks.borrow().clone();
        for Callback { mask, function, argument } in all {
            // One that ran before may have taken this one back, or closed the handle.
            let holds = self.callbacks.borrow().iter().any(|callback| callback.is(function, argument));
            let wanted = match told.family() {
                Families::STREAM => true,
                // A kind that only a later version knows.
                Families(0) => mask.has(Families::ALL),
                family => mask.has(family),
            };
            if holds && wanted && !self.closed.get() {
                // By dvm.h the callback may be called from dvm_dispatch, and returns.
                unsafe { function(&told.view(), argument) };
            }
        }
    }

    fn take(&self) -> Result<Option<Box<EventDoc>>, Trouble> {
        // A callback may have forked, and the child have returned from it.
        self.check_process()?;
        match self.events.borrow_mut().try_next()? {
            Next::Event(event) => Ok(Some(event)),
            Next::Quiet => Ok(None),
            Next::End(_) => Err(Trouble::ended()),
        }
    }

    pub(crate) fn call(
        &self,
        plugin: &str,
        json: &str,
        timeout: Option<Duration>,
    ) -> Result<CString, Trouble> {
        let command = serde_json::from_str(json).map_err(|error| {
            Failure::new(FailureCode::Usage, "the command is not JSON").cause(error.to_string())
        })?;
        let request = Request::Call { plugin: plugin.into(), command, query: false, fresh: false };
        match self.ask(request, timeout)? {
            Answer::Reply { reply: Ok(reply), .. } => Ok(c_text(&reply.to_string())),
            Answer::Reply { reply: Err(error), member, .. } => {
                let failure = Failure::new(FailureCode::Failure, error);
                Err(failure.cause(format!("the plug-in at {member} says so")).into())
            }
            _ => Err(Trouble::unexpected()),
        }
    }

    pub(crate) fn ask(&self, request: Request, timeout: Option<Duration>) -> Result<Answer, Trouble> {
        Ok(self.client.borrow_mut().request(request, None, timeout)?)
    }

    /// The instance of a plug-in at the kernel talked to.
    pub(crate) fn attach(&self, plugin: &str, code: Module) -> Result<Driven, Trouble> {
        Ok(Driven::of(&self.client.borrow(), plugin, code)?)
    }

    pub(crate) fn uri(&self) -> *const c_char {
        self.uri.as_ptr()
    }

    pub(crate) fn through(&self) -> *const c_char {
        match self.events.borrow().through() {
            Some(member) => {
                *self.through.borrow_mut() = c_text(member);
                self.through.borrow().as_ptr()
            }
            None => null(),
        }
    }

    /// Remembers a failure; its code.
    pub(crate) fn fail(&self, trouble: Trouble) -> c_int {
        let code = trouble.code();
        *self.trouble.borrow_mut() = trouble;
        code
    }

    pub(crate) fn trouble(&self, text: fn(&Trouble) -> *const c_char) -> *const c_char {
        text(&self.trouble.borrow())
    }

    /// Whether a callback closes it, so that it must live on until the dispatch has returned; that is remembered.
    pub(crate) fn closes_later(&self) -> bool {
        self.closed.set(true);
        self.dispatching.get()
    }

    /// Whether a callback has closed it, and the dispatch has returned.
    pub(crate) fn closes_now(&self) -> bool {
        self.closed.get() && !self.dispatching.get()
    }
}

fn check_mask(mask: Families) -> Result<(), Trouble> {
    if Families::known().has(mask) {
        return Ok(());
    }
    let unknown = mask.0 & !Families::known().0;
    Err(Trouble::usage(format!("the mask has bits that stand for nothing here: {unknown:#x}")))
}
