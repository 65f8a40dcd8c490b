//! What every command starts from: which DVM is meant, how to reach it, how long to wait.

use crate::cli::Global;
use crate::exit::usage;
use crate::output::Output;
use crate::selector;
use dvm_plugin_api::client::{Client, Events, Filter, REACH, Target};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Request, Since, Status};
use dvm_plugin_api::place::DvmPlace;
use std::time::Duration;

/// How long an ordered request may take beyond what its execution may.
const MARGIN: Duration = Duration::from_secs(10);

/// The arguments of every command, and where to tell.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) out: Output,
}

impl Context {
    pub(crate) fn new(mut global: Global, out: Output) -> Self {
        // An empty variable is one that is not set.
        global.dvm = global.dvm.filter(|dvm| !dvm.is_empty());
        global.kernel = global.kernel.filter(|kernel| !kernel.as_os_str().is_empty());
        Self { global, out }
    }

    /// Whom to talk to, `--member` aside.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        let target = Target::find(self.global.dvm.as_deref(), "dvm")?;
        let reach = self.global.timeout.map_or(REACH, |timeout| timeout.min(REACH));
        Ok(Target { reach, ..target })
    }

    /// The directory of the DVM that is meant.
    pub(crate) fn place(&self) -> Result<DvmPlace, Failure> {
        Ok(self.target()?.place)
    }

    /// A session through any kernel, or through `--member`.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let target = self.member_target(self.target()?)?;
        self.session(target)
    }

    /// A session through any kernel, for commands where `--member` says what and not how.
    pub(crate) fn client_any(&self) -> Result<Client, Failure> {
        self.session(self.target()?)
    }

    /// A subscription.
    pub(crate) fn events(&self, since: Since, filter: Filter) -> Result<Events, Failure> {
        self.client()?.events(since, filter)
    }

    /// Waits as long as `--timeout` says, else 10 seconds.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        Some(self.global.timeout.unwrap_or(REACH))
    }

    /// Waits as long as `--timeout` says, else as long as every member may execute and a margin.
    pub(crate) fn timeout_agreed(&self, client: &mut Client) -> Result<Option<Duration>, Failure> {
        if self.global.timeout.is_some() {
            return Ok(self.global.timeout);
        }
        let limit = setting(client, "exec_limit_ms")?.and_then(|limit| limit.parse().ok()).unwrap_or(0);
        Ok(Some(Duration::from_millis(limit) + MARGIN))
    }

    /// Asks and waits as long as [`timeout`](Self::timeout).
    pub(crate) fn ask(&self, client: &mut Client, request: Request) -> Result<Answer, Failure> {
        client.request(request, None, self.timeout())
    }

    fn session(&self, target: Target) -> Result<Client, Failure> {
        let client = match &self.global.id {
            Some(key) => Client::with_session(target, key)?,
            None => Client::connect(target)?,
        };
        self.out.detail(format!(
            "through {} in {}",
            client.through().unwrap_or_default(),
            client.target().place.directory().display()
        ));
        Ok(client)
    }

    /// Resolves `--member` to a name; only a rank or an id needs a kernel for that.
    fn member_target(&self, target: Target) -> Result<Target, Failure> {
        let Some(member) = &self.global.member else { return Ok(target) };
        if target.place.members()?.contains(member) {
            return Ok(target.only(member));
        }
        let mut client = Client::connect(target.clone())?;
        let status = status(&mut client, self.timeout())?;
        let chosen = selector::select(std::slice::from_ref(member), &status.members)?;
        match chosen.as_slice() {
            [one] => Ok(target.only(one)),
            _ => Err(usage(format!("--member `{member}` means several: {}", chosen.join(", ")))),
        }
    }
}

/// Asks for the status.
pub(crate) fn status(client: &mut Client, timeout: Option<Duration>) -> Result<Status, Failure> {
    match client.request(Request::Status, None, timeout)? {
        Answer::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Asks for one setting.
pub(crate) fn setting(client: &mut Client, wanted: &str) -> Result<Option<String>, Failure> {
    match client.request(Request::Settings, None, Some(REACH))? {
        Answer::Settings(all) => Ok(all.into_iter().find(|(key, _)| key == wanted).map(|(_, value)| value)),
        other => Err(unexpected(&other)),
    }
}

/// For an answer to another question.
pub(crate) fn unexpected(answer: &Answer) -> Failure {
    let text = format!("{answer:?}");
    let kind: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
    Failure::new(FailureCode::Failure, format!("the kernel answered with `{kind}`, which was not asked for"))
        .hint("are `dvm` and `dvm-kernel` of one version?")
}
