//! A pool of SQLite connections in each worker: every worker opens its own after the fork, and the schema is made before.
//!
//! SQLite forbids to use a connection in a forked process, and other databases would mix up the answers of the processes. sqlx,
//! deadpool and r2d2 are used in the same way: create the pool in the function that you give to `serve`.
//!
//! ```text
//! cargo run --example sqlite_pool -- 127.0.0.1:3000 notes.db
//! curl -d 'buy milk' http://127.0.0.1:3000/notes
//! curl http://127.0.0.1:3000/notes
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio_prefork::{BoxError, Cluster, Config, Main};

/// How many connections each worker opens at most.
const MAX_CONNECTIONS: usize = 4;

/// How long a statement waits for a writer of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool of connections. SQLite blocks, so statements run on tokio's blocking threads.
#[derive(Clone)]
struct Database {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Database {
    fn new(path: &Path) -> rusqlite::Result<Database> {
        let idle = Arc::new(Mutex::new(vec![open(path)?]));
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Ok(Database { path: path.to_path_buf(), idle, permits })
    }

    /// Runs `statements` with a connection of its own.
    async fn run<T: Send + 'static>(
        &self,
        statements: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BoxError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        let database = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle = database.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = idle.map_or_else(|| open(&database.path), Ok)?;
            let result = statements(&mut connection);
            database.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        });
        Ok(task.await??)
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Readers and one writer do not wait for each other.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    Ok(connection)
}

fn main() -> Main {
    run().into()
}

fn run() -> Result<(), BoxError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let mut words = std::env::args().skip(1);
    let address = words.next().unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let path = PathBuf::from(words.next().unwrap_or_else(|| "notes.db".to_string()));
    let config = Config::builder().listen(&address)?.build()?;
    create_schema(&path)?;
    Cluster::new(config).serve(move |_| {
        let path = path.clone();
        async move {
            let database = Database::new(&path)?;
            Ok(Router::new().route("/notes", get(list_notes).post(add_note)).with_state(database))
        }
    })?;
    Ok(())
}

/// Creates the table in the primary, once, and closes the connection before the first fork.
fn create_schema(path: &Path) -> rusqlite::Result<()> {
    let schema = "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)";
    open(path)?.execute(schema, []).map(drop)
}

async fn add_note(State(database): State<Database>, text: String) -> Result<String, StatusCode> {
    let insert = database.run(move |connection| {
        connection.execute("INSERT INTO notes (text) VALUES (?1)", [text])?;
        Ok(connection.last_insert_rowid())
    });
    Ok(format!("{}\n", insert.await.map_err(|e| internal_error(&e))?))
}

async fn list_notes(State(database): State<Database>) -> Result<String, StatusCode> {
    let select = database.run(|connection| {
        let mut statement = connection.prepare_cached("SELECT id, text FROM notes ORDER BY id")?;
        let rows = statement.query_map([], |row| {
            Ok(format!("{} {}\n", row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.collect::<rusqlite::Result<String>>()
    });
    select.await.map_err(|e| internal_error(&e))
}

fn internal_error(error: &BoxError) -> StatusCode {
    log::error!("the database failed: {error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
