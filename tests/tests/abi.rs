//! The ABI promise: what was built against 1.0, whose API and headers are frozen in `tests/abi/1.0`, runs with the kernel
//! of today, whatever compiled it; and what is built today runs with the host of 1.0.

use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, Ground, built, has, root_for, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's compiler for its browsers: another version of Rust than the one that built the kernel, and what it needs.
const OTHER_COMPILER: [&str; 4] = ["rustc-web", "libstd-rust-web-dev", "libstd-rust-web-1.85", "libllvm19"];

fn frozen() -> PathBuf {
    root().join("tests/abi/1.0")
}

/// Where what belongs to no package of the workspace is built.
fn target(name: &str) -> PathBuf {
    built("dvm").ancestors().nth(2).expect("target/PROFILE/dvm").join(name)
}

/// Runs a program to its good end, however long it takes.
fn run(command: &mut Command) -> String {
    for (variable, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CARGO") && name != "CARGO_HOME")
    {
        command.env_remove(variable);
    }
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{told}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Builds packages of 1.0 in a directory of their own; where the files are.
fn build(packages: &[&str], profile: &str, compiler: Option<&Path>) -> PathBuf {
    let directory = target(if compiler.is_some() { "abi-1.0-other" } else { "abi-1.0" });
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--profile", profile]).current_dir(frozen());
    packages.iter().for_each(|package| {
        cargo.args(["-p", package]);
    });
    if let Some(compiler) = compiler {
        cargo.env("RUSTC", compiler);
    }
    let _ = run(cargo.arg("--target-dir").arg(&directory));
    directory.join(if profile == "dev" { "debug" } else { profile })
}

/// Loads a ledger of 1.0 with standbys, has it do all it can, and pulls the plug on its primary.
fn is_a_plugin_of_this_kernel(library: &Path) {
    let cluster = Cluster::up(3, &[]);
    let library = library.to_str().expect("text");
    let check = cluster.ok(&["plugin", "check", library]);
    assert_eq!((&check["name"], &check["abi"]), (&json!("ledger"), &json!("1.0")), "{check}");
    let refused = cluster.json(&["plugin", "load", library, "-c", "start=-1"]).exits(4);
    assert!(refused.stdout.contains("begins with no debts"), "{refused}");
    let _ = cluster.ok(&["plugin", "load", library, "--mode", "hot", "--instances", "3", "-c", "start=5"]);
    let call = |command: &str| cluster.ok(&["call", "ledger", command])["reply"].clone();
    let first = call("{\"add\":3}");
    assert_eq!((&first["sum"], &first["commands"]), (&json!(8), &json!(1)), "{first}");
    let own = cluster.json(&["call", "ledger", "{\"refuse\":\"it is late\"}"]).exits(1);
    assert!(own.stdout.contains("it is late"), "{own}");
    let _ = cluster.ok(&["plugin", "configure", "ledger", "-c", "start=10"]);
    let told = wait_for("the primary may act", || {
        let told = call("{\"look\":true}");
        told["token"].is_u64().then_some(told)
    });
    assert_eq!(told["sum"], json!(18), "{told}");
    assert_eq!(told["role"], json!(format!("primary {}", told["token"])), "{told}");
    assert!(told["events"].as_u64().is_some_and(|events| events > 0), "{told}");
    let primary = cluster.status(None)["plugins"][0]["primary"].as_str().expect("a primary").to_owned();
    cluster.kill(&primary);
    let after = wait_for("the next primary may act", || {
        let told = call("{\"look\":true}");
        told["token"].is_u64().then_some(told)
    });
    assert_eq!(after["sum"], json!(18), "{after}");
    assert!(after["token"].as_u64() > told["token"].as_u64(), "{after} after {told}");
    let _ = cluster.ok(&["plugin", "unload", "ledger"]);
}

#[test]
fn a_plugin_of_1_0_runs_on_this_kernel() {
    is_a_plugin_of_this_kernel(&build(&["ledger"], "dev", None).join("libledger.so"));
}

#[test]
fn a_plugin_of_1_0_for_release_runs_on_this_kernel_stripped_or_not() {
    let library = build(&["ledger"], "release", None).join("libledger.so");
    is_a_plugin_of_this_kernel(&library);
    if has(&["strip"], "a stripped plug-in") {
        let (ground, stripped) = (Ground::new(), "libledger.so");
        let stripped = ground.home().join(stripped);
        let _ = run(Command::new("strip").arg("-o").arg(&stripped).arg(&library));
        is_a_plugin_of_this_kernel(&stripped);
    }
}

#[test]
fn a_plugin_of_1_0_by_another_compiler_runs_on_this_kernel() {
    let what = "a plug-in by another compiler";
    if !root_for(what) || !has(&["apt-get", "dpkg"], what) {
        return;
    }
    let compiler = other_compiler();
    let version = run(Command::new(&compiler).arg("--version"));
    let ours = run(Command::new("rustc").arg("--version"));
    assert_ne!(version, ours, "it is another one");
    is_a_plugin_of_this_kernel(&build(&["ledger"], "dev", Some(&compiler)).join("libledger.so"));
}

/// Debian's compiler under a prefix of its own, where it is in nobody's way.
fn other_compiler() -> PathBuf {
    let prefix = target("rustc-web");
    let compiler = prefix.join("rustc");
    if compiler.exists() {
        return compiler;
    }
    fs::create_dir_all(&prefix).expect("created");
    let download = || {
        let mut apt = Command::new("apt-get");
        apt.arg("download").args(OTHER_COMPILER).current_dir(&prefix);
        apt
    };
    // A fresh machine has no lists of packages.
    if !download().output().is_ok_and(|output| output.status.success()) {
        let _ = run(Command::new("apt-get").arg("update"));
        let _ = run(&mut download());
    }
    for file in fs::read_dir(&prefix).expect("listed").map(|entry| entry.expect("an entry").path()) {
        if file.extension().is_some_and(|extension| extension == "deb") {
            let _ = run(Command::new("dpkg").arg("-x").arg(&file).arg(prefix.join("root")));
        }
    }
    let root = prefix.join("root/usr");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={0}/lib/x86_64-linux-gnu:{0}/lib/llvm-19/lib exec {0}/bin/rustc \"$@\"\n",
        root.display()
    );
    let begun = prefix.join("rustc.new");
    fs::write(&begun, script).expect("written");
    fs::set_permissions(&begun, fs::Permissions::from_mode(0o755)).expect("executable");
    fs::rename(begun, &compiler).expect("in place");
    compiler
}

#[test]
fn plugins_of_today_run_on_the_host_of_1_0() {
    let host = build(&["old-host"], "dev", None).join("old-host");
    let drive = |library: &Path| {
        let mut old = Command::new(&host);
        let told = run(old.arg(library).args(["{\"start\":5}", "{\"add\":3}", "{\"get\":true}"]));
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    let expected = [json!({"value": 8}), json!({"value": 8}), json!({"taken_over": true})];
    assert_eq!(drive(&built("libcounter.so")), expected);
    if has(&["cc"], "a plug-in in C") {
        let ground = Ground::new();
        let library = ground.plugin(&root().join("plugins/counter-c/counter.c"), "counter", &[]);
        assert_eq!(drive(&library), expected);
    }
}

#[test]
fn c_against_the_headers_of_1_0_runs_with_what_is_here() {
    if !has(&["cc"], "plug-ins and applications in C") {
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let (library, program) = (cluster.home().join("libcounter.so"), cluster.home().join("calls"));
    let compile = |source: &str, to: &Path, link: &[&str]| {
        let mut compiler = Command::new("cc");
        compiler.args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]);
        let _ = run(compiler
            .arg("-I")
            .arg(frozen().join("include"))
            .arg(frozen().join(source))
            .arg("-o")
            .arg(to)
            .args(link));
    };
    compile("counter.c", &library, &["-shared", "-fPIC"]);
    let lib = cluster.prefix().join("lib");
    let (search, runpath) = (format!("-L{}", lib.display()), format!("-Wl,-rpath,{}", lib.display()));
    compile("calls.c", &program, &[&search, "-ldvm", &runpath]);
    let _ = cluster.ok(&["plugin", "load", library.to_str().expect("text")]);
    let mut calls = cluster.program("sh");
    calls.args(["-c", "printf '{\"add\":3}\\n{\"get\":true}\\n' | \"$0\" \"$1\""]).arg(&program);
    let uri = cluster.ok(&["status"])["dvm"]["uri"].as_str().expect("text").to_owned();
    let told = cluster.finish({
        calls.arg(uri);
        calls
    });
    assert_eq!(told.exits(0).stdout, "{\"value\":3}\n{\"value\":3}\n");
}
