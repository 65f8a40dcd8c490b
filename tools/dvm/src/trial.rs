//! `plugin test`: a library in a small DVM in memory, which loses, pauses and promotes its instances under seeds.
//!
//! It runs in this process: what ends it ends the command, and a debugger finds it here.

use crate::context::Context;
use crate::exit::{self, failed, usage};
use crate::library;
use crate::plugin::ConfigArgs;
use crate::table::count;
use clap::Args;
use dvm_plugin_api::host::Module;
use dvm_plugin_api::local::Failure;
use dvm_plugin_api::testing::{self, Mode, Report, Testbed};
use serde_json::{Map, Value, json};

const MODES: [(&str, Mode); 4] =
    [("parallel", Mode::Parallel), ("hot", Mode::Hot), ("warm", Mode::Warm), ("single", Mode::Single)];

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The library
    #[arg(value_name = "FILE|NAME")]
    file: String,
    /// Commands, of which chance takes one each time
    #[arg(required = true, value_name = "JSON")]
    commands: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// In this mode; default: in each
    #[arg(long, value_parser = MODES.map(|(name, _)| name))]
    mode: Option<String>,
    /// How many runs in each mode
    #[arg(long, value_name = "N", default_value_t = 20)]
    seeds: u64,
    /// The first run's seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    first_seed: u64,
    /// Steps of a run
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u64,
}

pub(crate) fn test(context: &Context, args: TestArgs) -> exit::Result {
    let path = library::find(&args.file)?;
    let manifest = library::read(&path)?.manifest;
    let commands = args.commands.iter().map(|text| {
        let error = |error: serde_json::Error| usage(format!("`{text}` is no JSON")).cause(error.to_string());
        serde_json::from_str(text).map_err(error)
    });
    let commands = commands.collect::<Result<Vec<Value>, Failure>>()?;
    let keys = args.config.read()?.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let config = Value::Object(keys.collect::<Map<_, _>>());
    let path = std::path::absolute(&path).unwrap_or(path);
    // SAFETY: the file passed the check of its manifest, and whoever tests it does not build it meanwhile.
    let module = unsafe { Module::load(&path) };
    let module = module.map_err(|error| {
        failed(format!("{} cannot be loaded", path.display())).cause(format!("{error} ({})", error.code()))
    })?;
    let mut all = Report::default();
    let modes = MODES.iter().filter(|(name, _)| args.mode.as_ref().is_none_or(|mode| mode == name));
    for (name, mode) in modes {
        for seed in (args.first_seed..).take(args.seeds as usize) {
            let bed = Testbed::library(module, &manifest, seed).mode(*mode).config(config.clone());
            let report = bed.start().and_then(|mut dvm| {
                let report = dvm.run(args.steps, &*commands)?;
                dvm.stop().map(|()| report)
            });
            all = all + report.map_err(|failure| told(&manifest.name, name, seed, &failure))?;
        }
    }
    if all.replies == 0 {
        return Err(failed(format!("{} answers none of these commands", manifest.name))
            .cause(format!("all {} were answered with errors", all.errors))
            .hint("give commands that it knows"));
    }
    let document = json!({
        "plugin": manifest.name, "seeds": args.seeds, "steps": args.steps, "replies": all.replies,
        "errors": all.errors, "crashes": all.crashes, "failures": all.failures, "pauses": all.pauses,
        "promotions": all.promotions, "joins": all.joins,
    });
    context.out.tell(&document, || {
        format!(
            "{}: nothing broke in {} of {} a mode: {} commands, {} members lost, {} instances killed, {} paused, {} \
             promoted, {} members joined",
            manifest.name,
            count(args.seeds as usize, "run"),
            count(args.steps as usize, "step"),
            all.replies + all.errors + all.late,
            all.crashes,
            all.failures,
            all.pauses,
            all.promotions,
            all.joins,
        )
    });
    Ok(exit::OK)
}

fn told(plugin: &str, mode: &str, seed: u64, failure: &testing::Failure) -> Failure {
    let again = format!("again: add --mode {mode} --first-seed {seed} --seeds 1");
    failed(format!("{plugin} breaks in mode {mode}, under seed {seed}"))
        .cause(failure.to_string())
        .hint(again)
}
