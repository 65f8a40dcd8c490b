//! What an instance asks of its host, answered in memory as a kernel answers it.

use super::Failure;
use super::desk::own_event;
use super::process::Started;
use super::seat::Seat;
use super::world::{Other, World};
use crate::Program;
use crate::service::{self, Ask, NOT_YET, Undone, key_refusal, message_refusal};
use serde_json::{Value, json};

/// # Errors
/// Why there is no answer, in words for people.
pub(super) fn answer(world: &World, seat: &Seat, ask: Ask) -> Result<Value, String> {
    let (serving, promoted) = world.with_desk(seat.id, |desk| (desk.serving, desk.promoted))?;
    if !ask.is_private() && !serving {
        return Err(NOT_YET.into());
    }
    let primary = || promoted.ok_or_else(|| service::no_primary(&seat.plugin));
    match ask {
        Ask::Call { plugin, command, query, .. } => return call(world, seat, &plugin, &command, query),
        Ask::Broadcast { command } => return Ok(json!({"index": world.order(&seat.plugin, command)})),
        Ask::Send { member, body } => {
            refused(message_refusal(&body))?;
            let message = own_event("message", json!({"from": seat.member, "body": body}));
            world.send(&seat.plugin, &member, message)?;
        }
        Ask::Get { key } => {
            let found = world.key(&key);
            return Ok(
                found.map_or(Value::Null, |(value, version)| json!({"value": value, "version": version}))
            );
        }
        Ask::Put { key, value, version } => {
            refused(key_refusal(&key, true))?;
            let put = world.change_key(&key, Some(value), version);
            return Ok(put.map_or(Value::Null, |version| json!({"version": version})));
        }
        Ask::Delete { key } => {
            refused(key_refusal(&key, true))?;
            world.change_key(&key, None, None);
        }
        Ask::Watch { prefix } => world.with_desk(seat.id, |desk| desk.watch(prefix))??,
        Ask::Unwatch { prefix } => world.with_desk(seat.id, |desk| desk.unwatch(&prefix))?,
        Ask::Timer { name, after_ms, every_ms } => {
            let due_ms = world.now_ms().saturating_add(after_ms);
            world.with_desk(seat.id, |desk| desk.set_timer(name, due_ms, every_ms))??;
        }
        Ask::CancelTimer { name } => world.with_desk(seat.id, |desk| desk.cancel_timer(&name))?,
        Ask::Spawn { argv, .. } if argv.is_empty() => {
            return Err(service::NO_PROGRAM.into());
        }
        Ask::Spawn { member, key, argv, env, cwd } => {
            world.find_member(&member)?;
            let program = Program { argv, env, cwd };
            world.spawn(seat.id, &Started { plugin: seat.plugin.clone(), member, key, program })?;
        }
        Ask::Kill { member, key } => {
            world.find_member(&member)?;
            world.kill(&seat.plugin, &member, &key);
        }
        Ask::Done { index } => {
            primary()?;
            let key = service::effects_key(&seat.plugin);
            if done(world, &seat.plugin) < index {
                world.change_key(&key, Some(json!({"loaded": 0, "done": index})), None);
            }
        }
        Ask::Undone => {
            let through = primary()?;
            let commands = world.commands(&seat.plugin, done(world, &seat.plugin), through);
            let commands = commands.into_iter().map(|told| (told.index, told.size, move || told.command));
            return serde_json::to_value(Undone::of(commands)).map_err(|error| error.to_string());
        }
    }
    Ok(Value::Null)
}

/// Effects of all commands up to this one are marked as done.
fn done(world: &World, plugin: &str) -> u64 {
    let mark = world.key(&service::effects_key(plugin));
    mark.and_then(|(mark, _)| mark["done"].as_u64()).unwrap_or_default()
}

fn refused(why: Option<String>) -> Result<(), String> {
    why.map_or(Ok(()), Err)
}

fn call(world: &World, seat: &Seat, plugin: &str, command: &Value, query: bool) -> Result<Value, String> {
    if plugin == seat.plugin {
        return Err("in memory nobody else replies while a plug-in waits for itself; use broadcast".into());
    }
    if !world.others().iter().any(|name| name == plugin) {
        return Err(format!("no plug-in `{plugin}` is loaded; see `Testbed::plugin` and `Testbed::stub`"));
    }
    let answer = world.with_other(plugin, |other| match other {
        Other::Stub(stub) => stub(command).map_err(Failure::Own),
        Other::Plugin(dvm) if query => dvm.query(command.clone()),
        Other::Plugin(dvm) => dvm.call(command.clone()),
    });
    match answer {
        Some(Ok(reply)) => Ok(reply),
        Some(Err(failure @ Failure::Broken(_))) => {
            let text = failure.to_string();
            world.broke(failure);
            Err(text)
        }
        Some(Err(failure)) => Err(failure.to_string()),
        None => Err(format!("nobody replies in time: `{plugin}` itself waits for a reply")),
    }
}
