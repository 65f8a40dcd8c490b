//! An instance of a plug-in in the program's own process, which runs when the program says so.
//!
//! Callbacks may call what `dvm.h` lets them, so nothing that those functions look at stays borrowed while they run.

use crate::handle::Dvm;
use crate::trouble::Trouble;
use dvm_plugin_api::host::Module;
use dvm_plugin_api::{Driven, Ender};
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// `dvm_attached_t`.
#[derive(Debug)]
pub struct Attached {
    plugin: String,
    /// The process that attached, and may use it.
    process: u32,
    fd: c_int,
    /// The one part that another thread may use while callbacks run.
    ender: Ender,
    driven: RefCell<Driven>,
    trouble: RefCell<Trouble>,
    running: Cell<bool>,
    /// A callback has detached it.
    closed: Cell<bool>,
}

impl Attached {
    pub(crate) fn new(dvm: &Dvm, plugin: &str, code: Module) -> Result<Self, Trouble> {
        let driven = dvm.attach(plugin, code)?;
        Ok(Self {
            plugin: plugin.into(),
            process: std::process::id(),
            fd: driven.as_fd().as_raw_fd(),
            ender: driven.ender()?,
            driven: RefCell::new(driven),
            trouble: RefCell::default(),
            running: Cell::new(false),
            closed: Cell::new(false),
        })
    }

    pub(crate) fn check_process(&self) -> Result<(), Trouble> {
        Trouble::unless_here(self.process, "instance", "let go of it here with dvm_detach")
    }

    pub(crate) fn fd(&self) -> c_int {
        self.fd
    }

    pub(crate) fn run_pending(&self) -> Result<c_int, Trouble> {
        match self.running(Driven::run_pending)? {
            Some(callbacks) => Ok(c_int::try_from(callbacks).unwrap_or(c_int::MAX)),
            None => Err(Trouble::unloaded(&self.plugin)),
        }
    }

    pub(crate) fn wait(&self, limit: Option<Duration>) -> Result<c_int, Trouble> {
        match self.running(|driven| driven.wait(limit))? {
            false => Ok(0),
            true => Err(Trouble::unloaded(&self.plugin)),
        }
    }

    /// Runs callbacks.
    fn running<T>(
        &self,
        run: impl FnOnce(&mut Driven) -> Result<T, dvm_plugin_api::local::Failure>,
    ) -> Result<T, Trouble> {
        let Ok(mut driven) = self.driven.try_borrow_mut() else {
            return Err(Trouble::usage(format!(
                "a callback of {} must not run the instance that calls it; return, and it goes on",
                self.plugin
            )));
        };
        self.running.set(true);
        let ran = run(&mut driven);
        self.running.set(false);
        Ok(ran?)
    }

    pub(crate) fn end(&self) {
        // A forked child has no say in it.
        if self.check_process().is_ok() {
            self.ender.end();
        }
    }

    pub(crate) fn fail(&self, trouble: Trouble) -> c_int {
        let code = trouble.code();
        *self.trouble.borrow_mut() = trouble;
        code
    }

    pub(crate) fn error(&self) -> *const c_char {
        self.trouble.borrow().text()
    }

    /// Whether a callback detaches it, so that it must live on until that has returned; that is remembered.
    pub(crate) fn closes_later(&self) -> bool {
        self.closed.set(true);
        self.end();
        self.running.get()
    }

    /// Whether a callback has detached it, and has returned.
    pub(crate) fn closes_now(&self) -> bool {
        self.closed.get() && !self.running.get()
    }
}
