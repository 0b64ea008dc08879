//! `dfs`: the master, chunk servers, mounts and administration, one binary. Under the name `mount.fuse.dfs` it is the
//! helper that mount(8) calls for `mount -t fuse.dfs SRC DIR`.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns processes, files and signals")]

mod admin;
mod config;
mod drain;
mod exit;
mod force_primary;
mod fsck;
mod info;
mod mount;
mod mount_options;
mod mount_point;
mod serve;
mod settings;
mod show;
mod signals;
mod source;
mod status;
mod supervise;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dfs_proto::wire::pb::FsckRequest;

use admin::Admin;
use exit::Exit;
use force_primary::Force;
use mount::Ground;
use settings::Settings;
use signals::StopSignals;

/// A distributed POSIX file system.
///
/// Exit codes: 0 done, 1 failed, 2 wrong use, 3 a server does not answer, 4 refused.
#[derive(Parser)]
#[command(name = "dfs", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Settings file (TOML); `dfs config` lists the settings
    #[arg(long, global = true, value_name = "FILE", env = "DFS_CONFIG")]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or module=level pairs
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Any setting that `dfs config` lists, such as master.offline_ms=5000; `dfs up` hands it on to its parts
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// End when this process, which started us, ends
    #[arg(long, global = true, hide = true, value_name = "PID")]
    with_parent: Option<i32>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: a master, chunk servers and a mount
    Up {
        /// Where its data lives; made if it is not there
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
        /// Where it is mounted; made if it is not there
        #[arg(long, value_name = "DIR")]
        mount: Option<String>,
        /// Ports: master PORT.., chunk servers PORT+100.., mount PORT+200
        #[arg(long, value_name = "PORT")]
        base_port: Option<String>,
        /// 1 to 9; if it is not said, those that have data there, 3 at least
        #[arg(long, value_name = "N")]
        chunk_servers: Option<String>,
        /// Mount options, as for `dfs mount`
        #[arg(short = 'o', value_name = "OPTIONS")]
        options: Vec<String>,
    },
    /// Run a master: names, attributes, placement
    Master {
        /// Where its data lives
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
        /// HOST:PORT for mounts; gRPC is at PORT+1, HTTP at PORT+2
        #[arg(long, value_name = "HOST:PORT")]
        listen: Option<String>,
        /// Metadata engine: embedded, or memory (everything is lost at exit)
        #[arg(long, value_name = "ENGINE")]
        meta: Option<String>,
    },
    /// Run a chunk server: replicas on disks
    Chunkd {
        /// Where its data lives: one directory a disk, commas between
        #[arg(long, value_name = "DIR[,DIR…]")]
        data: Option<String>,
        /// The master
        #[arg(long, value_name = "HOST:PORT")]
        master: Option<String>,
        /// HOST:PORT of the data plane; HTTP is at PORT+1
        #[arg(long, value_name = "HOST:PORT")]
        listen: Option<String>,
        /// HOST:PORT that others reach it at, if not --listen
        #[arg(long, value_name = "HOST:PORT")]
        advertise: Option<String>,
        /// Rack label, for placement
        #[arg(long, value_name = "NAME")]
        rack: Option<String>,
    },
    /// Mount the file system (also: mount -t fuse.dfs SRC DIR -o OPTIONS)
    Mount {
        /// HOST[:PORT][,HOST[:PORT]…][:/SUBDIR]
        source: String,
        /// An empty directory
        directory: PathBuf,
        /// ro, noatime, nosuid, …, allow_other, soft=SECONDS or hard, dirty=BYTES, read_ahead=BYTES, workers=N,
        /// http=HOST:PORT, log=FILE, log_level=LEVEL, nonempty
        #[arg(short = 'o', value_name = "OPTIONS")]
        options: Vec<String>,
        /// Stay in the foreground, log on standard error
        #[arg(short = 'f', long)]
        foreground: bool,
        /// The process that `dfs mount` leaves behind
        #[arg(long, hide = true, conflicts_with = "foreground")]
        background: bool,
    },
    /// Show the cluster: space, chunk servers, mounts
    Status {
        #[command(flatten)]
        ask: Ask,
    },
    /// Show one file: inode, layout, chunks, replicas, versions
    Info {
        /// On a mounted dfs, or absolute from the root of the file system
        path: PathBuf,
        #[command(flatten)]
        ask: Ask,
    },
    /// Check the whole file system while it is in use
    ///
    /// Names and inodes, the replicas of each chunk, what servers hold. Exit codes: 0 nothing found, 1 all that was found is
    /// mended, 3 the master does not answer, 4 something that was found is not mended.
    Fsck {
        /// Read and check every unit of every replica
        #[arg(long)]
        deep: bool,
        /// Mend what can be mended without losing anything
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Empty a chunk server: its replicas are made elsewhere, nothing is lost meanwhile
    Drain {
        /// Its number, or the HOST:PORT of its data plane
        node: String,
        /// Do not empty it any more
        #[arg(long)]
        stop: bool,
        /// Return when it is empty
        #[arg(long, conflicts_with = "stop")]
        wait: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Forget a chunk server that is gone or empty
    RemoveNode {
        /// Its number, or the HOST:PORT of its data plane
        node: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Last resorts
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// List every setting, its value and where that came from
    Config {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Make a replica the only one of its chunk that counts, when all that were in sync are lost. It is recorded
    ForcePrimary {
        /// The file: on a mounted dfs, or absolute from the root of the file system
        path: PathBuf,
        /// The chunk's place in the file, from 0
        index: u32,
        /// The chunk server that has the replica: its number, or the HOST:PORT of its data plane
        node: String,
        /// Acknowledged writes that the replica lacks are gone for good
        #[arg(long)]
        accept_data_loss: bool,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Args)]
struct Ask {
    /// The master to ask
    #[arg(long, value_name = "HOST:PORT")]
    master: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let is_helper = std::env::args_os()
        .next()
        .and_then(|name| Some(Path::new(&name).file_name()?.to_string_lossy().starts_with("mount.")))
        .unwrap_or(false);
    match if is_helper { help_mount() } else { run(Arguments::parse()) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dfs: {error:#}");
            let code = exit::code(&error);
            if code == Exit::Usage as u8 && !is_helper {
                eprintln!("(dfs --help and dfs COMMAND --help tell more)");
            }
            ExitCode::from(code)
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn help_mount() -> anyhow::Result<()> {
    let arguments = mount::helper_arguments(std::env::args().skip(1))?;
    if arguments.fake {
        return Ok(());
    }
    mount::detached(&arguments.request, &arguments.option_list, &[])
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { global, command } = arguments;
    let mut settings = Settings::load(global.config.as_deref(), environment)?;
    for assignment in &global.set {
        settings.set(assignment)?;
    }
    settings.set_flag("log.level", global.log_level.clone());
    if let Some(parent) = global.with_parent {
        signals::end_with_parent(parent)?;
    }
    match command {
        Command::Up { data, mount, base_port, chunk_servers, options } => {
            settings.set_flag("up.data", data);
            settings.set_flag("up.mount", mount);
            settings.set_flag("up.base_port", base_port);
            settings.set_flag("up.chunk_servers", chunk_servers);
            let signals = daemon(&settings)?;
            up::run(&settings, &options.join(","), signals)
        }
        Command::Master { data, listen, meta } => {
            settings.set_flag("master.data", data);
            settings.set_flag("master.listen", listen);
            settings.set_flag("master.meta", meta);
            let signals = daemon(&settings)?;
            serve::master(&settings, signals)
        }
        Command::Chunkd { data, master, listen, advertise, rack } => {
            settings.set_flag("chunkd.data", data);
            settings.set_flag("chunkd.master", master);
            settings.set_flag("chunkd.listen", listen);
            settings.set_flag("chunkd.advertise", advertise);
            settings.set_flag("chunkd.rack", rack);
            let signals = daemon(&settings)?;
            serve::chunkd(&settings, signals)
        }
        Command::Mount { source, directory, options, foreground, background } => {
            let list = options.join(",");
            let parsed = mount_options::parse(&list)?;
            source::parse(&source)?;
            settings.set_flag("log.level", parsed.log_level.clone());
            let request = mount::Request { source, directory, options: parsed };
            let ground = match (foreground, background) {
                (true, _) => Ground::Foreground,
                (_, true) => Ground::Background,
                _ => return mount::detached(&request, &list, &global_flags(&global)),
            };
            let signals = daemon(&settings)?;
            mount::serve(request, ground, signals)
        }
        Command::Status { ask } => status::run(asker(&mut settings, &ask)?, ask.json),
        Command::Info { path, ask } => info::run(asker(&mut settings, &ask)?, &path, ask.json),
        Command::Fsck { deep, repair, ask } => {
            fsck::run(asker(&mut settings, &ask)?, FsckRequest { deep, repair }, ask.json)
        }
        Command::Drain { node, stop, wait, ask } => {
            drain::run(asker(&mut settings, &ask)?, &drain::Drain { node, stop, wait }, ask.json)
        }
        Command::RemoveNode { node, ask } => drain::remove(asker(&mut settings, &ask)?, &node, ask.json),
        Command::Admin { command: AdminCommand::ForcePrimary { path, index, node, accept_data_loss, ask } } => {
            let force = Force { path: &path, index, node: &node, accepts_loss: accept_data_loss };
            force_primary::run(asker(&mut settings, &ask)?, &force, ask.json)
        }
        Command::Config { json } => {
            config::run(&settings, json);
            Ok(())
        }
    }
}

/// Prepares a process that runs until it is told to stop: signals first, before any thread is there.
fn daemon(settings: &Settings) -> anyhow::Result<StopSignals> {
    let signals = StopSignals::block()?;
    dfs_telemetry::init_log(settings.text("log.level")).map_err(exit::usage)?;
    Ok(signals)
}

fn asker(settings: &mut Settings, ask: &Ask) -> anyhow::Result<Admin> {
    settings.set_flag("client.master", ask.master.clone());
    Admin::from_settings(settings)
}

/// Returns the global flags again, for the background process.
fn global_flags(global: &Global) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(config) = &global.config {
        flags.extend(["--config".to_owned(), config.display().to_string()]);
    }
    if let Some(level) = &global.log_level {
        flags.extend(["--log-level".to_owned(), level.clone()]);
    }
    for assignment in &global.set {
        flags.extend(["--set".to_owned(), assignment.clone()]);
    }
    flags
}
