//! Programs of other people: compiled and run against what `cargo xtask install` puts in place.

use super::{Cluster, Ground, Outcome, built};
use crate::book::root;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether the programs are installed that `what` needs. Where one is not, the test is skipped and says so; under
/// `CI=true`, where nobody reads that, it fails.
///
/// # Panics
/// Under `CI=true` without one of them.
#[must_use]
pub fn has(programs: &[&str], what: &str) -> bool {
    let Some(missing) = programs.iter().find(|program| !installed(program)) else { return true };
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI=true has {missing}, which {what} needs");
    eprintln!("skipped: {what} needs {missing}");
    false
}

/// Whether a program is installed: it can be started, whatever it says to this.
#[must_use]
pub fn installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok()
}

/// What the compilers complain of.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

impl Ground {
    /// Where header, library and Python module are, laid out as an installation.
    ///
    /// # Panics
    /// When the library is not built.
    #[must_use]
    pub fn prefix(&self) -> PathBuf {
        let prefix = self.home().join("prefix");
        if prefix.exists() {
            return prefix;
        }
        let sources = root();
        for (from, to) in [
            (sources.join("plugin-api/capi/include/dvm.h"), "include/dvm.h"),
            (sources.join("plugin-api/capi/include/dvm_plugin.h"), "include/dvm_plugin.h"),
            (built("libdvm.so"), "lib/libdvm.so.1"),
            (built("libdvm.so"), "lib/libdvm.so"),
            (built("libdvm.a"), "lib/libdvm.a"),
            (sources.join("plugin-api/python/dvm.py"), "lib/dvm/python/dvm.py"),
        ] {
            let to = prefix.join(to);
            fs::create_dir_all(to.parent().expect("a directory")).expect("created");
            symlink(from, to).expect("linked");
        }
        let template = fs::read_to_string(sources.join("plugin-api/capi/dvm.pc.in")).expect("it is there");
        let text = template.replace("@prefix@", &prefix.display().to_string());
        fs::create_dir_all(prefix.join("lib/pkgconfig")).expect("created");
        fs::write(prefix.join("lib/pkgconfig/dvm.pc"), text).expect("written");
        prefix
    }

    /// Compiles a C program from its source; `link` says how the library comes to it.
    ///
    /// # Panics
    /// When the compiler finds anything to complain of.
    #[must_use]
    pub fn compile(&self, source: &Path, link: &[&str]) -> PathBuf {
        let prefix = self.prefix();
        let lib = prefix.join("lib");
        let program = self.home().join(source.file_stem().expect("a file"));
        let mut compiler = self.program("cc");
        compiler.args(STRICT).args(["-std=c11", "-D_POSIX_C_SOURCE=200809L"]);
        compiler.arg("-I").arg(prefix.join("include")).arg(source).arg("-o").arg(&program);
        compiler.arg("-L").arg(&lib).args(link).arg(format!("-Wl,-rpath,{}", lib.display()));
        let _ = self.finish(compiler).exits(0);
        program
    }

    /// Compiles a plug-in from its source in C (`.c`) or C++, as libNAME.so; `options` are the compiler's.
    ///
    /// # Panics
    /// When the compiler finds anything to complain of.
    #[must_use]
    pub fn plugin(&self, source: &Path, name: &str, options: &[&str]) -> PathBuf {
        let library = self.home().join(format!("lib{name}.so"));
        let (program, standard) = match source.extension() {
            Some(c) if c == "c" => ("cc", "-std=c11"),
            _ => ("c++", "-std=c++17"),
        };
        let mut compiler = self.program(program);
        compiler.args(STRICT).args([standard, "-shared", "-fPIC"]).args(options);
        compiler.arg("-I").arg(self.prefix().join("include")).arg("-o").arg(&library).arg(source);
        let _ = self.finish(compiler).exits(0);
        library
    }

    /// Python with a script and arguments, to which the module is at hand.
    #[must_use]
    pub fn python(&self, script: &Path, arguments: &[&str]) -> Command {
        let mut python = self.program("python3");
        // Nothing is left in the sources.
        python.arg("-B").arg(script).args(arguments);
        python.env("PYTHONPATH", self.prefix().join("lib/dvm/python"));
        python
    }

    /// Starts a kernel in this ground, as on another host: it joins `cluster` with a ticket.
    #[must_use]
    pub fn join(&self, cluster: &Cluster, member: &str) -> Outcome {
        let ticket = cluster.ok(&["ticket"])["ticket"].as_str().expect("a ticket").to_owned();
        self.join_with(&cluster.place().name(), member, &ticket)
    }

    /// Starts a kernel that joins with this ticket, as its launcher would.
    ///
    /// # Panics
    /// When there is no room.
    #[must_use]
    pub fn join_with(&self, dvm: &str, member: &str, ticket: &str) -> Outcome {
        let bootstrap = json!({
            "dvm": dvm, "member": member, "role": {"join": {"ticket": ticket}}, "tags": {}, "runtime_dir": self.runtime(),
            "log_dir": self.logs(), "listen": "127.0.0.1", "respawn": null,
        });
        let file = self.home().join("bootstrap");
        fs::write(&file, format!("{bootstrap}\n")).expect("written");
        let mut kernel = self.program(built("dvm-kernel"));
        kernel.args(["--bootstrap", "-"]).stdin(Stdio::from(File::open(&file).expect("there")));
        self.finish(kernel)
    }
}
