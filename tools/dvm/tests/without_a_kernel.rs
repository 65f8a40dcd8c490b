//! What the command line does where no kernel is: usage, places, failures and their forms.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A user's host with nothing on it.
struct Host {
    base: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { base: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvm"));
        command.args(args).env_clear().env("PATH", "/nowhere");
        command.env("DVM_RUNTIME_DIR", self.path("run")).env("DVM_LOG_DIR", self.path("log"));
        command
    }

    fn dvm(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("dvm runs")
    }

    /// Sockets that accept, as kernels' would.
    fn listeners(&self, dvm: &str, members: &[&str]) -> Vec<UnixListener> {
        let directory = self.path("run").join(dvm);
        for path in [self.path("run"), directory.clone()] {
            let _ = fs::create_dir(&path);
            private(&path, 0o700);
        }
        let bind = |member| UnixListener::bind(directory.join(format!("{member}.sock"))).expect("bound");
        members.iter().map(bind).collect()
    }
}

fn private(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// The one document on standard output, and the exit code, which must be the same in both.
fn failure(output: &Output) -> (i32, Value) {
    let document: Value = serde_json::from_str(&stdout(output)).expect("a document");
    let exit = output.status.code().expect("an exit code");
    assert_eq!(document["schema"], 1);
    assert_eq!(document["error"]["exit"], exit);
    assert_eq!(stderr(output), "");
    (exit, document["error"].clone())
}

fn check(host: &Host, args: &[&str], exit: i32) {
    let output = host.dvm(args);
    assert_eq!(output.status.code(), Some(exit), "{args:?}\n{}{}", stdout(&output), stderr(&output));
}

#[test]
fn usage_is_exit_2() {
    let host = Host::new();
    for args in [
        &["frobnicate"][..],
        &[],
        &["up", "--local", "x"],
        &["up", "--local", "0"],
        &["up", "--local", "2", "--min", "3"],
        &["up", "--name", "0bad", "--dry-run", "--kernel", "/bin/true"],
        &["--timeout", "soon", "status"],
        &["wait", "sometimes"],
        &["call", "counter", "not json"],
        &["state", "put", "k", "v", "--if-absent", "--if-version", "3"],
        &["history", "--from", "x"],
        &["plugin", "load", "x", "--mode", "cold"],
        &["plugin", "configure", "counter"],
        &["chaos", "kill"],
        &["--dvm", "tcp:there", "status"],
        &["--dvm", "a/b", "status"],
        &["--dvm", "0bad", "status"],
    ] {
        check(&host, args, 2);
    }
}

#[test]
fn usage_is_a_document_where_documents_are_wanted() {
    let host = Host::new();
    let (exit, error) = failure(&host.dvm(&["wait", "sometimes", "--json"]));
    assert_eq!((exit, &error["code"]), (2, &json!("usage")));
}

#[test]
fn no_dvm_is_exit_3() {
    let host = Host::new();
    for args in [
        &["status"][..],
        &["status", "--dvm", "nobody"],
        &["status", "--dvm", "unix:/nowhere/at/all"],
        &["members"],
        &["events", "--follow"],
        &["state", "get", "k"],
        &["call", "counter", "{}"],
        &["halt"],
        &["halt", "--force"],
        &["wait", "members=1"],
        &["chaos", "heal"],
        &["ticket"],
    ] {
        check(&host, args, 3);
    }
    let (_, error) = failure(&host.dvm(&["status", "--json"]));
    assert_eq!(error["code"], "no-dvm");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("dvm up")), "{error}");
    // Looking creates nothing.
    assert!(!host.path("run").exists());
}

#[test]
fn text_failures_say_what_to_do() {
    let output = Host::new().dvm(&["status"]);
    let text = stderr(&output);
    let begins: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).map(|(word, _)| word).collect();
    assert_eq!(begins, ["error:", "cause:", "hint:"], "{text}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_runtime_directory_that_is_not_ours_alone_is_refused() {
    let host = Host::new();
    fs::create_dir(host.path("real")).expect("created");
    private(&host.path("real"), 0o700);
    symlink(host.path("real"), host.path("run")).expect("linked");
    for args in [&["status"][..], &["list"], &["up", "--kernel", "/bin/true"]] {
        check(&host, args, 7);
        assert!(stderr(&host.dvm(args)).contains("symbolic link"));
    }
    fs::remove_file(host.path("run")).expect("removed");
    fs::create_dir(host.path("run")).expect("created");
    private(&host.path("run"), 0o755);
    check(&host, &["status"], 7);
    assert!(stderr(&host.dvm(&["status"])).contains("chmod 700"));
    fs::remove_dir(host.path("run")).expect("removed");
    fs::write(host.path("run"), "").expect("written");
    check(&host, &["status"], 1);
}

#[test]
fn a_socket_path_that_is_too_long_is_told_before_anything_starts() {
    let host = Host::new();
    let long = host.path(&"x".repeat(90));
    let output =
        host.command(&["up", "--kernel", "/bin/true"]).env("DVM_RUNTIME_DIR", &long).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("at most 107"), "{}", stderr(&output));
}

#[test]
fn several_dvms_want_a_choice() {
    let host = Host::new();
    let _sockets = [host.listeners("one", &["k0"]), host.listeners("two", &["k0", "k1"])];
    let (exit, error) = failure(&host.dvm(&["status", "--json"]));
    assert_eq!((exit, &error["cause"]), (2, &json!("one, two")));
}

#[test]
fn list_tells_the_living_from_the_dead() {
    let host = Host::new();
    let _sockets = host.listeners("one", &["k0", "k1"]);
    drop(host.listeners("two", &["k0"]));
    let output = host.dvm(&["list", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let document: Value = serde_json::from_str(&stdout(&output)).expect("a document");
    let of = |name: &str| {
        document["dvms"].as_array().expect("a list").iter().find(|dvm| dvm["name"] == name).cloned()
    };
    let one = of("one").expect("listed");
    assert_eq!((&one["state"], &one["members"]), (&json!("live"), &json!(["k0", "k1"])));
    assert_eq!(one["uri"], format!("unix:{}", host.path("run/one").display()));
    assert_eq!(of("two").expect("listed")["state"], "dead");
}

/// A directory of logs where they are kept unless something else is said, as a DVM that ended leaves it.
struct LogsLeft {
    path: PathBuf,
    name: String,
}

impl LogsLeft {
    fn new() -> Self {
        let name = format!("left{}", std::process::id());
        let path =
            Path::new("/var/tmp").join(format!("dvm-{}", rustix::process::geteuid().as_raw())).join(&name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).expect("created");
        Self { path, name }
    }
}

impl Drop for LogsLeft {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn those_that_ended_are_listed_where_their_logs_are_and_nowhere_else() {
    let host = Host::new();
    let left = LogsLeft::new();
    assert!(!stdout(&host.dvm(&["list"])).contains(&left.name), "its logs are not in $DVM_LOG_DIR");
    let listed = host.command(&["list"]).env_remove("DVM_LOG_DIR").output().expect("dvm runs");
    assert!(stdout(&listed).contains(&left.name), "{}", stdout(&listed));
}

#[test]
fn a_kernel_that_says_nothing_is_told_within_the_timeout() {
    let host = Host::new();
    let _mute = host.listeners("one", &["k0"]);
    let (exit, error) = failure(&host.dvm(&["status", "--json", "--timeout", "300ms"]));
    assert_eq!(exit, 3);
    assert!(error["cause"].as_str().is_some_and(|cause| cause.contains("silent")), "{error}");
}

#[test]
fn a_name_in_use_is_exit_1() {
    let host = Host::new();
    let _sockets = host.listeners("one", &["k0"]);
    check(&host, &["up", "--name", "one", "--kernel", "/bin/true"], 1);
}

#[test]
fn a_kernel_that_does_not_start_is_told_with_its_words() {
    let host = Host::new();
    let script = host.path("kernel");
    fs::write(&script, "#!/bin/sh\nread line\necho noise\necho 'no such luck' >&2\nexit 9\n")
        .expect("written");
    private(&script, 0o700);
    let (exit, error) = failure(&host.dvm(&["up", "--json", "--kernel", script.to_str().expect("text")]));
    assert_eq!(exit, 1);
    assert!(error["cause"].as_str().is_some_and(|cause| cause.contains("no such luck")), "{error}");

    let said = r#"DVM-KERNEL-1 {"failed":{"stage":"join","reason":"too late","hint":"be early"}}"#;
    fs::write(&script, format!("#!/bin/sh\nread line\necho noise\necho '{said}'\n")).expect("written");
    let (_, error) = failure(&host.dvm(&["up", "--json", "--kernel", script.to_str().expect("text")]));
    assert_eq!((&error["cause"], &error["hint"]), (&json!("too late"), &json!("be early")));

    let (_, error) = failure(&host.dvm(&["up", "--json", "--kernel", "/nowhere"]));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("/nowhere")), "{error}");
    // No name is taken by what did not start.
    assert_eq!(
        fs::read_dir(host.path("run"))
            .expect("there")
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
            .count(),
        0
    );
}

#[test]
fn a_dry_run_prints_the_lines_and_starts_nothing() {
    let host = Host::new();
    let args = ["up", "--local", "2", "--name", "lab", "--dry-run", "--kernel", "/bin/true"];
    let args = [&args[..], &["--set", "window=64", "--partition", "quorum", "--tag", "rack=7"]].concat();
    let run = |more: &[&str]| {
        let mut command = host.command(&[&args[..], more].concat());
        let output = command.env("DVM_PORT_RANGE", "40000-40100").output().expect("dvm runs");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let text = run(&[]);
    let socket = |member: &str| host.path("run").join("lab").join(format!("{member}.sock"));
    for part in ["/bin/true --bootstrap -", "window=64", "partition=quorum", "rack=7", "40000-40100"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    for member in ["k0", "k1"] {
        assert!(text.contains(&socket(member).display().to_string()), "{text}");
        assert!(
            text.contains(&host.path("log").join(format!("{member}.log")).display().to_string()),
            "{text}"
        );
    }
    let document: Value = serde_json::from_str(&run(&["--json"])).expect("JSON");
    assert_eq!((&document["dvm"], &document["min"]), (&json!("lab"), &json!(2)));
    assert_eq!(document["runtime_dir"], json!(host.path("run")));
    assert_eq!(document["settings"], json!({"window": "64", "partition": "quorum"}));
    let commands = document["commands"].as_array().expect("a list");
    assert_eq!(commands.len(), 2, "{document}");
    assert_eq!(commands[0]["stdin"]["role"]["found"]["settings"][0], json!(["window", "64"]));
    assert_eq!(commands[1]["stdin"]["tags"], json!({"rack": "7"}));
    assert_eq!(commands[1]["socket"], json!(socket("k1")));
    assert_eq!((&commands[1]["listen"], &commands[1]["ports"]), (&json!("127.0.0.1"), &json!("40000-40100")));
    assert!(!host.path("run").exists() && !host.path("log").exists());
}

#[test]
fn other_hosts_are_not_available_yet() {
    let host = Host::new();
    for args in
        [&["up", "--host", "a,b"][..], &["add", "--hostfile", "f"], &["status", "--dvm", "ssh://there"]]
    {
        check(&host, args, 1);
        assert!(stderr(&host.dvm(args)).contains("not available in this version"));
    }
}

#[test]
fn a_plugin_that_is_not_there_is_exit_6_and_one_that_is_none_is_exit_1() {
    let host = Host::new();
    check(&host, &["plugin", "check", "nobody"], 6);
    check(&host, &["plugin", "check", "./nobody.so"], 6);
    fs::write(host.path("text.so"), "not a library").expect("written");
    check(&host, &["plugin", "check", host.path("text.so").to_str().expect("text")], 1);
}

#[test]
fn logs_are_read_without_a_kernel() {
    let host = Host::new();
    fs::create_dir(host.path("log")).expect("created");
    let line = |second: u32, level: &str, text: &str| {
        format!("2026-01-02T03:04:{second:02}.000Z {level} k0 1 7 kernel: {text}\n")
    };
    fs::write(host.path("log/k0.log"), line(1, "INFO", "one") + &line(3, "WARN", "three plugin=counter"))
        .expect("written");
    fs::write(host.path("log/k1.log"), line(2, "DEBUG", "two") + "  and more\n").expect("written");
    let ends = |args: &[&str]| -> Vec<String> {
        let output = host.dvm(args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output).lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
    };
    assert_eq!(ends(&["logs"]), ["one", "two", "more", "plugin=counter"]);
    assert_eq!(ends(&["logs", "k1"]), ["two", "more"]);
    assert_eq!(ends(&["logs", "--level", "info"]), ["one", "plugin=counter"]);
    assert_eq!(ends(&["logs", "--plugin", "counter"]), ["plugin=counter"]);
    assert_eq!(ends(&["logs", "--since", "2026-01-02T03:04:02Z"]), ["two", "more", "plugin=counter"]);
    check(&host, &["logs", "k7"], 6);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let host = Host::new();
    let line = format!("{} --help | head -n 1", env!("CARGO_BIN_EXE_dvm"));
    let output = Command::new("/bin/sh").args(["-c", &line]).output().expect("runs");
    assert_eq!(stderr(&output), "");
    drop(host);
}
