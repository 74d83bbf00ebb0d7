//! The sources of the configuration of a process, which a reload reads again.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use super::app_keys::AppKeys;
use super::environment::{Environment, env_prefix};
use super::file;
use super::program::Program;
use super::settings::{Settings, resolve_settings};
use crate::config::Config;
use crate::error::Result;

/// The flags and the environment of a process, kept so that a reload can read the configuration file again.
///
/// ```no_run
/// use clap::Parser;
/// use tokio_prefork::{Cluster, cli::ServerArgs};
///
/// #[derive(Parser)]
/// struct Args {
///     #[command(flatten)]
///     server: ServerArgs,
/// }
///
/// # fn run() -> tokio_prefork::Result<()> {
/// let sources = Args::parse().server.sources("myapp");
/// let settings = sources.resolve()?;
/// settings.log_warnings();
/// let cluster = Cluster::new(settings.into_config()).reload_with(move || sources.read_config());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ConfigSources<A: AppKeys = ()> {
    pub(super) program: Program,
    pub(super) flags: BTreeMap<&'static str, Vec<String>>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) env: Vec<(String, String)>,
    pub(super) keys: PhantomData<fn() -> A>,
}

impl<A: AppKeys> ConfigSources<A> {
    /// Replaces the environment of this process by these variables, for tests.
    pub fn with_environment(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> ConfigSources<A> {
        self.env = variables.into_iter().collect();
        self
    }

    /// Reads the same sources for a program with other keys.
    pub fn with_keys<B: AppKeys>(self) -> ConfigSources<B> {
        let ConfigSources { program, flags, config_file, env, keys: _ } = self;
        ConfigSources { program, flags, config_file, env, keys: PhantomData }
    }

    /// Returns whether a flag, a variable of the program or the file sets the key of this name, whatever its value.
    ///
    /// # Errors
    ///
    /// The file cannot be read. What is in it is not checked.
    pub fn sets_key(&self, name: &str) -> Result<bool> {
        let env = self.environment();
        if self.flags.contains_key(name) || env.own_var_of(name).is_some() {
            return Ok(true);
        }
        let Some((_, text)) = self.read_file(&env)? else { return Ok(false) };
        Ok(toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key(name)))
    }

    /// Reads the configuration file, if one is named, and resolves all values.
    ///
    /// # Errors
    ///
    /// A value, a name or the file is invalid. The error names the flag, the variable or the line of the file; its exit
    /// status is 78.
    pub fn resolve(&self) -> Result<Settings<A>> {
        let env = self.environment();
        let file = self.read_file(&env)?;
        resolve_settings(&self.program, &self.flags, &env, file)
    }

    fn environment(&self) -> Environment {
        Environment::new(env_prefix(self.program.name), self.env.iter().cloned())
    }

    /// Returns path and text of the configuration file, if one is named.
    fn read_file(&self, env: &Environment) -> Result<Option<(PathBuf, String)>> {
        let path = self.config_file.clone().or_else(|| env.config_file().map(PathBuf::from));
        path.map(|path| Ok((path.clone(), file::read_config_file(&path)?))).transpose()
    }

    /// Resolves all values again and logs the warnings, for [`Cluster::reload_with`](crate::Cluster::reload_with).
    ///
    /// # Errors
    ///
    /// As [`ConfigSources::resolve`].
    pub fn read_config(&self) -> Result<Config> {
        let settings = self.resolve()?;
        settings.log_warnings();
        Ok(settings.into_config())
    }
}
