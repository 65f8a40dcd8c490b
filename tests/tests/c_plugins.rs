//! Plug-ins in C and C++, in real kernels: they do what those in Rust do, in all modes, and fail as they do.
//!
//! They are compiled here against the header as `cargo xtask install` lays it out; where there is no `cc` or `c++`, their
//! part is skipped.

use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, Ground, has, installed, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The counter in C.
fn counter(ground: &Ground) -> PathBuf {
    ground.plugin(&root().join("plugins/counter-c/counter.c"), "counter", &[])
}

/// A plug-in of `tests/programs`.
fn program(ground: &Ground, source: &str, options: &[&str]) -> PathBuf {
    let source = root().join("tests/programs").join(source);
    ground.plugin(&source, text(Path::new(source.file_stem().expect("a file"))), options)
}

fn add(cluster: &Cluster, steps: i64) -> Value {
    cluster.ok(&["call", "counter", &json!({"add": steps}).to_string()])["reply"]["value"].clone()
}

/// The value that the instance at a member has, once it answers.
fn value_at(cluster: &Cluster, member: &str) -> Value {
    wait_for(&format!("an instance answers at {member}"), || {
        let query = cluster.json(&["--member", member, "call", "counter", "{\"get\":true}", "--query"]);
        let reply = (query.exit == 0).then(|| query.json())?;
        (reply["member"] == member).then(|| reply["reply"]["value"].clone())
    })
}

fn primary(cluster: &Cluster) -> String {
    wait_for("a primary", || {
        cluster.ok(&["plugin", "show", "counter"])["primary"].as_str().map(str::to_owned)
    })
}

#[test]
fn the_counter_in_c_is_loaded_called_configured_and_handed_over() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let library = counter(&cluster);
    let check = cluster.ok(&["plugin", "check", text(&library)]);
    assert_eq!((&check["name"], &check["payload"]), (&json!("counter"), &json!("json")), "{check}");
    assert_eq!((&check["abi"], &check["capabilities"]), (&json!("1.1"), &json!(["snapshot"])), "{check}");

    let refused = cluster.json(&["plugin", "load", text(&library), "-c", "nonsense=1"]).exits(4).json();
    let reason = "unknown field `nonsense`, expected `start` or `step`";
    let told =
        json!({"member": "k1", "result": "failed", "stage": "validate", "code": "config", "reason": reason});
    assert!(refused["results"].as_array().is_some_and(|results| results.contains(&told)), "{refused}");

    let _ = cluster.ok(&["plugin", "load", text(&library), "-c", "start=10", "-c", "step=2"]);
    assert_eq!(add(&cluster, 3), 16);
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=5"]);
    assert_eq!(add(&cluster, 1), 21);
    let refused = cluster.json(&["plugin", "configure", "counter", "-c", "step=\"x\""]).exits(4);
    assert!(refused.stdout.contains("`step` is an integer"), "{refused}");
    let wrong = cluster.json(&["call", "counter", "{\"jump\":1}"]).exits(1).json();
    assert!(wrong["error"].as_str().is_some_and(|error| error.contains("a command is one of")), "{wrong}");
    let wrong = cluster.json(&["call", "counter", "{\"add\":9223372036854775807}"]).exits(1);
    assert!(wrong.stdout.contains("would overflow"), "{wrong}");
    let logs = cluster.run(&["logs", "k2"]).exits(0);
    assert!(logs.stdout.contains("a counter on k2, one of 3"), "{logs}");

    cluster.kill("k0");
    cluster.settle(&["k1", "k2"]);
    let _ = cluster.ok(&["add", "--local", "1"]);
    let joined = cluster.members().pop().expect("members");
    assert_eq!(value_at(&cluster, &joined), 21, "{joined} has another's state");
    assert_eq!(add(&cluster, 2), 31);
    for member in cluster.members() {
        assert_eq!(value_at(&cluster, &member), 31, "at {member}");
    }
    cluster.verify();
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
}

#[test]
fn the_counter_in_c_has_a_primary_that_is_taken_over_from() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    for mode in ["hot", "warm"] {
        let cluster = Cluster::up(3, &[]);
        let _ = cluster.ok(&["plugin", "load", text(&counter(&cluster)), "--mode", mode]);
        assert_eq!(add(&cluster, 7), 7);
        let first = primary(&cluster);
        cluster.kill(&first);
        wait_for("another primary", || (primary(&cluster) != first).then_some(()));
        assert_eq!(add(&cluster, 1), 8, "mode {mode}");
        cluster.verify();
    }
}

#[test]
fn a_plugin_in_cpp_works_and_an_exception_that_nobody_catches_is_a_crash() {
    if !has(&["c++"], "a plug-in in C++") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let _ = cluster.ok(&["plugin", "load", text(&program(&cluster, "book.cpp", &[]))]);
    let call = |command: &Value| cluster.json(&["call", "book", &command.to_string()]);
    let ada = "Ad\u{e4} \"\\\n\u{1f600}";
    let reply = call(&json!({"name": ada, "number": "1815"})).exits(0).json()["reply"].clone();
    assert_eq!((&reply["number"], &reply["dated"]), (&json!("1815"), &json!(true)), "{reply}");
    assert!(reply["session"].is_string(), "{reply}");
    let long = call(&json!({"name": "x".repeat(64)})).exits(1);
    assert!(long.stdout.contains("name is a text of at most 63 bytes"), "{long}");

    let since = cluster.status(None)["index"].to_string();
    let _ = cluster.ok(&["--member", "k0", "call", "book", "{\"throw\":\"k1\"}"]);
    wait_for("the instance is restarted", || {
        let told = cluster.run(&["--json-lines", "events", "--since", &since, "--kind", "instance-"]);
        told.lines().iter().any(|event| event["kind"] == "instance-restarted").then_some(())
    });
    let events = cluster.equal_events(&cluster.members(), &since);
    let failed: Vec<_> = events.iter().filter(|event| event["kind"] == "instance-failed").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert_eq!((&failed[0]["member"], &failed[0]["signal"]), (&json!("k1"), &json!("SIGABRT")), "{failed:?}");
    for member in cluster.members() {
        let find = ["--member", &member, "call", "book", &json!({"name": ada}).to_string()];
        assert_eq!(cluster.ok(&find)["reply"]["number"], "1815", "at {member}");
    }
    let told = wait_for("k0 is told", || {
        let query = cluster.ok(&["--member", "k0", "call", "book", "null", "--query"]);
        (query["reply"]["events"] == 1).then_some(query)
    });
    assert_eq!(told["reply"]["member"], "k0", "{told}");
}

#[test]
fn what_crashes_in_c_is_the_end_of_its_process_alone() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    let _ = cluster.ok(&["plugin", "load", text(&program(&cluster, "odd.c", &[]))]);
    for (fault, field, value) in [("segv", "signal", json!("SIGSEGV")), ("exit", "exit_code", json!(3))] {
        let since = cluster.status(None)["index"].to_string();
        let call = cluster.json(&["call", "odd", &json!({"fail": fault}).to_string()]);
        assert_ne!(call.exit, 0, "{call}");
        let failed = wait_for("it is told", || {
            let told =
                cluster.run(&["--json-lines", "events", "--since", &since, "--kind", "instance-failed"]);
            told.lines().into_iter().next()
        });
        assert_eq!(failed[field], value, "{failed}");
        let answers = || (cluster.json(&["call", "odd", "{}"]).exit == 0).then_some(());
        wait_for("it is started again", answers);
    }
    let none = cluster.json(&["call", "odd", "{}", "--query"]).exits(1);
    assert!(none.stdout.contains("answers no queries"), "{none}");
}

/// Tables of other versions, each refused before anything of the plug-in is called, or taken.
#[test]
fn tables_that_do_not_fit_are_refused_with_a_reason() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    for (options, reason) in [
        (&["-DSIZE=8"][..], "dvm_plugin_v1 has a struct_size of 8, the least is 32; compile it"),
        (&["-DFUNCTIONS_SIZE=80"], "dvm_plugin_v1 has a functions_size of 80, the least is 88; compile it"),
        (&["-DABI=0x20001"], "dvm_plugin_v1 is of ABI 2.1, this host speaks 1.1; compile it"),
        (&["-DNO_APPLY"], "its functions have no `apply`"),
        (
            &["-DFLAGS=0"],
            "neither `snapshot` nor `restore`; a plug-in without state says DVM_PLUGIN_STATELESS",
        ),
        (&["-DHALF"], "one of `snapshot` and `restore`; it takes both or none"),
    ] {
        let library = program(&cluster, "odd.c", options);
        let load = cluster.json(&["plugin", "load", text(&library)]).exits(4).json();
        let result = &load["results"][0];
        assert_eq!((&result["stage"], &result["code"]), (&json!("check"), &json!("abi")), "{load}");
        assert!(result["reason"].as_str().is_some_and(|text| text.contains(reason)), "{options:?}: {load}");
    }
    let silent = program(&cluster, "odd.c", &["-DSILENT"]);
    let load = cluster.json(&["plugin", "load", text(&silent)]).exits(4);
    assert!(load.stdout.contains("it returned 7 and gave no reason"), "{load}");
    let newer = ["-DSIZE=4096", "-DFUNCTIONS_SIZE=4096", "-DABI=0x10007"];
    let _ = cluster.ok(&["plugin", "load", text(&program(&cluster, "odd.c", &newer))]);
}

/// What the helpers of the header read and write, told by a program.
#[test]
fn the_helpers_of_the_header_read_and_write_json() {
    if !has(&["cc"], "the header's helpers") {
        return;
    }
    let ground = Ground::new();
    let program = ground.compile(&root().join("tests/programs/helpers.c"), &[]);
    let told = ground.finish(ground.program(program)).exits(0).stdout;
    let mut lines = told.lines();
    let written: Value = serde_json::from_str(lines.next().expect("an object")).expect("JSON");
    let wanted =
        json!({"i": i64::MIN, "s": "q\"\\\n\u{1} h\u{e9}", "b": true, "d": 0.1, "n": null, "infinite": null});
    assert_eq!(written, wanted);
    assert_eq!(lines.next(), Some("no such thing"), "{told}");
}

/// A small C file and procedures in Fortran.
#[test]
fn fortran_is_called_from_a_plugin_in_c() {
    if !installed("gfortran") || !installed("cc") {
        eprintln!("skipped: a plug-in in Fortran needs gfortran and cc");
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let programs = root().join("tests/programs");
    let object = cluster.home().join("mean.o");
    let mut compiler = cluster.program("gfortran");
    compiler.args(["-Wall", "-Werror", "-fPIC", "-c", "-J"]).arg(cluster.home());
    compiler.arg("-o").arg(&object).arg(programs.join("mean.f90"));
    let _ = cluster.finish(compiler).exits(0);
    let library = cluster.plugin(&programs.join("mean.c"), "mean", &[text(&object)]);
    let _ = cluster.ok(&["plugin", "load", text(&library)]);
    for (value, mean) in [(2.0, 2.0), (4.0, 3.0), (9.0, 5.0)] {
        let reply = cluster.ok(&["call", "mean", &json!({"value": value}).to_string()])["reply"].clone();
        assert_eq!(reply["mean"].as_f64(), Some(mean), "{reply}");
    }
}
