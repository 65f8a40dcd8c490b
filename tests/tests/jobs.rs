//! The plug-in `jobs`, and `dvm exec` over it: each job has one result, whoever is lost.

use dvm_tests::cluster::{Cluster, built, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn load(cluster: &Cluster, options: &[&str]) {
    let _ = cluster.ok(&[&["plugin", "load", "jobs", "--mode", "hot"], options].concat());
}

fn call(cluster: &Cluster, command: &Value) -> Value {
    cluster.ok(&["call", "jobs", &command.to_string()])["reply"].clone()
}

fn submit(cluster: &Cluster, order: &Value) -> u64 {
    call(cluster, &json!({"submit": order}))["job"].as_u64().expect("a number")
}

fn show(cluster: &Cluster, job: u64) -> Value {
    call(cluster, &json!({"show": job}))
}

/// A job when it is over.
fn over(cluster: &Cluster, job: u64) -> Value {
    wait_for(&format!("job {job} is over"), || {
        Some(show(cluster, job)).filter(|shown| shown["exit"].is_i64())
    })
}

/// Where the first task of a job runs.
fn place(cluster: &Cluster, job: u64) -> String {
    wait_for(&format!("job {job} runs"), || {
        let task = show(cluster, job)["tasks"][0].clone();
        (task["state"] == "running").then(|| task["member"].as_str().expect("a name").to_owned())
    })
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A script that notes its job in `runs`, then waits until `go` is there.
fn waits(home: &Path) -> Value {
    let (runs, go) = (home.join("runs"), home.join("go"));
    let script = format!(
        "echo $DVM_JOB on $DVM_MEMBER >> {}; while [ ! -e {} ]; do sleep 0.02; done; echo $DVM_JOB done",
        runs.display(),
        go.display()
    );
    json!(["sh", "-c", script])
}

#[test]
fn jobs_run_where_they_are_told_to_and_are_told_of() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &["--instances", "3"]);
    let script = json!(["sh", "-c", "echo $X on $DVM_MEMBER; echo oops >&2"]);
    let job =
        submit(&cluster, &json!({"argv": script, "on": ["k0", "k2"], "env": {"X": "it"}, "cwd": "/tmp"}));
    let shown = over(&cluster, job);
    for (number, member) in ["k0", "k2"].iter().enumerate() {
        let task = &shown["tasks"][number];
        assert_eq!((&task["state"], &task["member"]), (&json!("done"), &json!(member)), "{shown}");
        assert_eq!(task["stdout"]["text"], format!("it on {member}\n"), "{shown}");
        assert_eq!(task["stderr"], json!({"text": "oops\n", "before": 0}), "{shown}");
    }
    assert_eq!(shown["exit"], 0);

    // It fails twice, and is run a third time.
    let tries = cluster.home().join("tries");
    let script = format!("echo $DVM_TRY >> {0}; [ $(wc -l < {0}) = 3 ] || exit 9", tries.display());
    let retried = submit(&cluster, &json!({"argv": ["sh", "-c", script], "retries": 2}));
    assert_eq!(over(&cluster, retried)["exit"], 0);
    assert_eq!(lines(&tries), ["0", "1", "2"]);
    let failed = submit(&cluster, &json!({"argv": ["sh", "-c", "exit 9"], "retries": 1}));
    let shown = over(&cluster, failed);
    assert_eq!((&shown["exit"], &shown["tasks"][0]["state"]), (&json!(9), &json!("failed")), "{shown}");

    let spread = submit(&cluster, &json!({"argv": ["sh", "-c", "sleep 0.3"], "count": 3}));
    let shown = over(&cluster, spread);
    let mut members: Vec<_> = (0..3).map(|task| shown["tasks"][task]["member"].clone()).collect();
    members.sort_by_key(Value::to_string);
    assert_eq!(members, [json!("k0"), json!("k1"), json!("k2")], "{shown}");

    let nobody = submit(&cluster, &json!({"argv": ["true"], "on": ["k9"]}));
    let shown = over(&cluster, nobody);
    assert!(
        shown["tasks"][0]["error"].as_str().is_some_and(|why| why.contains("k9 is no member")),
        "{shown}"
    );

    let long = submit(&cluster, &json!({"argv": ["sleep", "1000"]}));
    place(&cluster, long);
    let early = cluster.json(&["call", "jobs", &json!({"forget": long}).to_string()]).exits(1);
    assert!(early.stdout.contains("is not over; cancel it first"), "{early}");
    let _ = call(&cluster, &json!({"cancel": long}));
    let shown = over(&cluster, long);
    assert_eq!((&shown["exit"], &shown["tasks"][0]["state"]), (&json!(143), &json!("cancelled")), "{shown}");
    let _ = call(&cluster, &json!({"forget": long}));
    let listed = call(&cluster, &json!({"list": true}));
    let listed: Vec<_> =
        listed["jobs"].as_array().expect("a list").iter().map(|job| job["job"].clone()).collect();
    assert_eq!(listed, [job, retried, failed, spread, nobody].map(Value::from));
    cluster.verify();
}

#[test]
fn a_killed_primary_loses_no_result_and_nothing_runs_twice() {
    let cluster = Cluster::up(4, &[]);
    load(&cluster, &["--instances", "3", "--on", "k0,k1,k2"]);
    let primary = || cluster.ok(&["plugin", "show", "jobs"])["primary"].as_str().map(str::to_owned);
    let first = wait_for("a primary", primary);
    let others: Vec<_> = cluster.members().into_iter().filter(|name| *name != first).collect();
    let runs = cluster.home().join("runs");
    let script = format!("echo $DVM_JOB >> {}; sleep 0.4; echo result $DVM_JOB", runs.display());
    let order = json!({"argv": ["sh", "-c", script], "on": others, "count": 2, "once": true});
    let mut jobs: Vec<u64> = (0..8).map(|_| submit(&cluster, &order)).collect();
    // Some have ended, some run.
    wait_for("one is over", || show(&cluster, jobs[0])["exit"].is_i64().then_some(()));
    jobs.extend((0..4).map(|_| submit(&cluster, &order)));
    cluster.kill(&first);
    jobs.extend((0..2).map(|_| submit(&cluster, &order)));
    for job in &jobs {
        let shown = over(&cluster, *job);
        for task in shown["tasks"].as_array().expect("tasks") {
            assert_eq!((&task["state"], &task["attempt"]), (&json!("done"), &json!(0)), "{shown}");
            assert_eq!(task["stdout"]["text"], format!("result {job}\n"), "{shown}");
        }
    }
    let mut ran: Vec<u64> = lines(&runs).iter().map(|line| line.parse().expect("a number")).collect();
    ran.sort_unstable();
    let wanted: Vec<u64> = jobs.iter().flat_map(|job| [*job, *job]).collect();
    assert_eq!(ran, wanted, "each task ran once");
    assert_ne!(primary(), Some(first));
    cluster.verify();
}

#[test]
fn what_a_lost_member_ran_is_run_again_elsewhere_or_has_failed() {
    let cluster = Cluster::up(4, &[]);
    load(&cluster, &["--instances", "2", "--on", "k0,k1"]);
    let argv = waits(cluster.home());
    let job = |more: Value| {
        let mut order = json!({"argv": argv, "on": ["k2", "k3"], "count": 1});
        order.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        submit(&cluster, &order)
    };
    let again = job(json!({}));
    let lost = place(&cluster, again);
    let other = if lost == "k2" { "k3" } else { "k2" };
    let pinned = submit(&cluster, &json!({"argv": argv, "on": [lost]}));
    let once = submit(&cluster, &json!({"argv": argv, "on": [lost], "count": 1, "once": true}));
    for job in [again, pinned, once] {
        assert_eq!(place(&cluster, job), lost);
    }
    let runs = cluster.home().join("runs");
    wait_for("all have begun", || (lines(&runs).len() == 3).then_some(()));
    cluster.kill(&lost);
    for job in [pinned, once] {
        let shown = over(&cluster, job);
        let error = shown["tasks"][0]["error"].as_str().unwrap_or_default();
        assert_eq!(error, format!("{lost} was lost while it ran there"), "{shown}");
        assert_eq!(shown["exit"], 127, "{shown}");
    }
    wait_for("it runs elsewhere", || lines(&runs).contains(&format!("{again} on {other}")).then_some(()));
    fs::write(cluster.home().join("go"), "").expect("there is room");
    let shown = over(&cluster, again);
    let task = &shown["tasks"][0];
    assert_eq!((&task["state"], &task["attempt"]), (&json!("done"), &json!(1)), "{shown}");
    assert_eq!(task["stdout"]["text"], format!("{again} done\n"), "{shown}");
    assert_eq!(lines(&runs).len(), 4, "nothing else ran");
}

/// What a stopped kernel has started runs on beside it. Its job is run again elsewhere, and has one result; the first try ends
/// when the kernel hears that it is out.
#[test]
fn a_member_that_was_only_stopped_ends_its_tries_when_it_comes_back() {
    let cluster = Cluster::up(4, &[]);
    load(&cluster, &["--instances", "2", "--on", "k0,k1"]);
    let (pids, go) = (cluster.home().join("pids"), cluster.home().join("go"));
    let script = format!(
        "echo $$ >> {}; while [ ! -e {} ]; do sleep 0.02; done; echo $DVM_TRY",
        pids.display(),
        go.display()
    );
    let job = submit(&cluster, &json!({"argv": ["sh", "-c", script], "on": ["k2", "k3"], "count": 1}));
    let stopped = place(&cluster, job);
    let first: u32 = wait_for("it runs", || lines(&pids).first()?.parse().ok());
    signal(cluster.pid(&stopped), Signal::STOP);
    let others: Vec<_> = ["k0", "k1", "k2", "k3"].into_iter().filter(|name| *name != stopped).collect();
    cluster.settle(&others);
    wait_for("it runs elsewhere", || (lines(&pids).len() == 2).then_some(()));
    assert!(lives(first), "nobody could end it");
    signal(cluster.pid(&stopped), Signal::CONT);
    wait_for("the first try ends", || (!lives(first)).then_some(()));
    cluster.settle(&["k0", "k1", "k2", "k3"]);
    fs::write(&go, "").expect("there is room");
    let shown = over(&cluster, job);
    let task = &shown["tasks"][0];
    assert_eq!((&task["state"], &task["stdout"]["text"]), (&json!("done"), &json!("1\n")), "{shown}");
    assert_eq!(lines(&pids).len(), 2, "nothing else ran");
}

/// A member that leaves in order ends what it runs; that is no failure of the job.
#[test]
fn a_member_that_leaves_gives_its_jobs_back() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &["--instances", "2", "--on", "k0,k1"]);
    let job = submit(&cluster, &json!({"argv": waits(cluster.home()), "on": ["k2", "k1"], "count": 2}));
    let runs = cluster.home().join("runs");
    wait_for("both have begun", || (lines(&runs).len() == 2).then_some(()));
    let _ = cluster.ok(&["remove", "k2"]);
    wait_for("it is run again", || (lines(&runs).len() == 3).then_some(()));
    fs::write(cluster.home().join("go"), "").expect("there is room");
    let shown = over(&cluster, job);
    assert_eq!(shown["exit"], 0, "{shown}");
    assert!((0..2).all(|task| shown["tasks"][task]["member"] == "k1"), "{shown}");
}

#[test]
fn exec_runs_a_command_on_members_and_tells_who_said_what() {
    let cluster = Cluster::up(3, &[]);
    let said = cluster.run(&["exec", "--", "sh", "-c", "echo here is $DVM_MEMBER; echo aside >&2"]).exits(0);
    let mut told: Vec<_> = said.stdout.lines().collect();
    told.sort_unstable();
    assert_eq!(told, ["k0: here is k0", "k1: here is k1", "k2: here is k2"], "{said}");
    assert!(said.stderr.contains("k1: aside"), "{said}");
    assert_eq!(cluster.ok(&["plugin", "show", "jobs"])["mode"], "hot", "it was loaded for this");

    let script = "[ $DVM_MEMBER = k2 ] && exit 7; exit 3";
    let failed = cluster.run(&["exec", "--on", "k[1-2]", "--", "sh", "-c", script]).exits(7);
    assert!(
        failed.stderr.contains("k1: exit code 3") && failed.stderr.contains("k2: exit code 7"),
        "{failed}"
    );
    let document = cluster
        .json(&[
            "exec",
            "--on",
            "rank:0",
            "--env",
            "X=1 2",
            "--cwd",
            "/tmp",
            "--",
            "sh",
            "-c",
            "echo $X; pwd",
        ])
        .exits(0)
        .json();
    assert_eq!((&document["exit"], &document["schema"]), (&json!(0), &json!(1)), "{document}");
    assert_eq!(document["tasks"][0]["stdout"]["text"], "1 2\n/tmp\n", "{document}");
    let missing = cluster.run(&["exec", "--on", "k0", "--", "/no/such/program"]).exits(127);
    assert!(missing.stderr.contains("k0: cannot run `/no/such/program`"), "{missing}");
    let nobody = cluster.json(&["exec", "--on", "k9", "--", "true"]).exits(6).json();
    assert_eq!(nobody["error"]["code"], "not-found", "{nobody}");
    let none = call(&cluster, &json!({"list": true}));
    assert_eq!(none, json!({"jobs": []}), "exec forgets its jobs");
}

#[test]
fn exec_ends_what_it_runs_when_its_time_is_up_or_it_is_ended() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &["--instances", "2"]);
    let pids = cluster.home().join("pids");
    let script = format!("echo $$ >> {}; exec sleep 1000", pids.display());
    let noted = |count: usize| {
        wait_for("all run", || {
            let pids: Vec<u32> = lines(&pids).iter().filter_map(|pid| pid.parse().ok()).collect();
            (pids.len() == count).then_some(pids)
        })
    };
    let late = cluster.json(&["--timeout", "2s", "exec", "--", "sh", "-c", &script]).exits(5).json();
    assert!(late["error"]["message"].as_str().is_some_and(|text| text.contains("is cancelled")), "{late}");
    assert!(!noted(2).into_iter().any(lives), "they end with it");

    for (round, by) in [Signal::INT, Signal::KILL].into_iter().enumerate() {
        let mut exec = cluster.start(&["-v", "exec", "--", "sh", "-c", &script]);
        let running = noted(4 + 2 * round);
        signal(exec.id(), by);
        let _ = exec.wait().expect("it ends");
        wait_for("they end", || (!running.iter().any(|pid| lives(*pid))).then_some(()));
    }
}

#[test]
fn exec_says_what_to_do_where_the_library_is_missing() {
    let cluster = Cluster::up(1, &[]);
    let alone = cluster.home().join("bin");
    fs::create_dir(&alone).expect("there is room");
    fs::copy(built("dvm"), alone.join("dvm")).expect("there is room");
    let mut command = cluster.program(alone.join("dvm"));
    command.args(["exec", "--", "true"]);
    let failed = cluster.finish(command).exits(6);
    assert!(failed.stderr.contains("libjobs.so is not in"), "{failed}");
    assert!(failed.stderr.contains("hint: set DVM_PLUGIN_PATH"), "{failed}");
}
