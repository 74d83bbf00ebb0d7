//! CPU-bound work in four places: the pool, threads with a state, isolated processes, and a number that all of them share.
//!
//! - `/count` counts words in the worker's pool.
//! - `/language` guesses a language on threads that each have built a model before the worker was ready.
//! - `/thumbnail/WIDTH` shrinks a picture in an isolated process, as a decoder may crash, leak or hang for a hostile file.
//! - `/` tells how many jobs all workers have begun.
//!
//! ```text
//! cargo run --example cpu_bound -- 127.0.0.1:3000
//! curl -d 'one two three' http://127.0.0.1:3000/count
//! curl -d 'ein Haus am See, und der Wald' http://127.0.0.1:3000/language
//! head -c 1000000 /dev/urandom | curl --data-binary @- http://127.0.0.1:3000/thumbnail/1000 | wc -c
//! curl -i -d crash http://127.0.0.1:3000/thumbnail/1000    # the process dies, and nothing else
//! curl -i -d hang http://127.0.0.1:3000/thumbnail/1000     # it is killed after 5 seconds
//! curl -i -d panic http://127.0.0.1:3000/thumbnail/0       # says where
//! curl http://127.0.0.1:3000/
//! ```

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio_prefork::isolated::MappedBytes;
use tokio_prefork::pool::{PoolConfig, PoolError, TaskError, TaskPool};
use tokio_prefork::{
    Cluster, Config, IsolatedJobError, IsolatedPool, IsolatedPoolConfig, Main, SharedNumber, Worker,
};

/// Largest picture in bytes.
const MAX_PICTURE_BYTES: usize = 16 << 20;

/// Longest time of a thumbnail, the wait for a process included.
const THUMBNAIL_TIMEOUT: Duration = Duration::from_secs(5);

/// A few words of each language, from which the model is made.
const SAMPLES: [(&str, &str); 3] = [
    ("English", "the house that stands at the lake and the wood which has been there with a tree"),
    (
        "German",
        "das Haus am See steht und der Wald ist auch da, mit einem Baum und nicht weit von hier",
    ),
    ("Spanish", "la casa que esta en el lago y el bosque con un arbol, no muy lejos de la ciudad"),
];

/// How often each group of three letters occurs in a language. Large in real life, so each thread makes it only once.
struct LanguageModel {
    frequencies: Vec<(&'static str, HashMap<[u8; 3], f64>)>,
}

impl LanguageModel {
    fn train() -> LanguageModel {
        let frequencies = SAMPLES.map(|(language, text)| {
            let mut counts = HashMap::new();
            letter_groups(text).for_each(|group| *counts.entry(group).or_insert(0.0) += 1.0);
            (language, counts)
        });
        LanguageModel { frequencies: frequencies.to_vec() }
    }

    fn guess(&self, text: &str) -> Result<String, String> {
        let scores = self.frequencies.iter().map(|(language, counts)| {
            let score: f64 = letter_groups(text).filter_map(|group| counts.get(&group)).sum();
            (*language, score)
        });
        let best = scores.max_by(|one, other| one.1.total_cmp(&other.1));
        best.filter(|(_, score)| *score > 0.0)
            .map(|(language, _)| language.to_string())
            .ok_or_else(|| "no language that is known here".to_string())
    }
}

fn letter_groups(text: &str) -> impl Iterator<Item = [u8; 3]> {
    text.as_bytes()
        .windows(3)
        .map(|group| [group[0], group[1], group[2]].map(|b| b.to_ascii_lowercase()))
}

type LanguagePool = TaskPool<String, String, String>;

/// The input is the width and the grey values of a picture, row by row, in memory that the process of the job reads in place.
type ThumbnailPool = IsolatedPool<(u32, MappedBytes), Vec<u8>, String>;

#[derive(Clone)]
struct AppState {
    worker: Worker,
    languages: LanguagePool,
    thumbnails: ThumbnailPool,
    jobs: SharedNumber,
}

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Before the fork, so that there is one for all workers.
    let jobs = SharedNumber::new("jobs")?;
    let thumbnails: ThumbnailPool = IsolatedPool::new(
        IsolatedPoolConfig::new("thumbnails", 2).deadline(THUMBNAIL_TIMEOUT).nice(5),
        || Ok(()),
        |_, (width, picture): (u32, MappedBytes)| shrink(width, &picture),
    );
    let cluster = Cluster::new(config).isolated_pool(&thumbnails);
    cluster.serve(move |worker: Worker| {
        let thumbnails = thumbnails.clone();
        async move {
            let languages = worker
                .create_task_pool(
                    "languages",
                    PoolConfig::new().threads(2),
                    || Ok(LanguageModel::train()),
                    |model: &mut LanguageModel, text: String| model.guess(&text),
                )
                .await?;
            let state = AppState { worker, languages, thumbnails, jobs };
            Ok(Router::new()
                .route("/", get(show_job_count))
                .route("/count", post(count_words))
                .route("/language", post(guess_language))
                .route("/thumbnail/{width}", post(make_thumbnail))
                .layer(DefaultBodyLimit::max(MAX_PICTURE_BYTES))
                .with_state(state))
        }
    })
}

async fn show_job_count(State(state): State<AppState>) -> String {
    format!("{} jobs in all workers\n", state.jobs.load())
}

/// Moves the text to a thread; other requests are served meanwhile.
async fn count_words(State(state): State<AppState>, text: String) -> Result<String, Failure> {
    let number = state.jobs.fetch_add(1);
    let count = state.worker.pool().run(move || text.split_whitespace().count()).await?;
    Ok(format!("job {number}: {count} words\n"))
}

async fn guess_language(State(state): State<AppState>, text: String) -> Result<String, Failure> {
    let number = state.jobs.fetch_add(1);
    let language = state.languages.run(text).await?;
    Ok(format!("job {number}: {language}\n"))
}

/// If the client leaves, the process of its job is killed: nobody waits for it any more.
async fn make_thumbnail(
    State(state): State<AppState>,
    Path(width): Path<u32>,
    picture: Bytes,
) -> Result<Vec<u8>, Failure> {
    state.jobs.fetch_add(1);
    let picture = MappedBytes::copy_from_slice(&picture)
        .map_err(|e| Failure(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(state.thumbnails.run((width, picture)).await?)
}

/// Halves a picture in both directions. Stands for a decoder with faults.
fn shrink(width: u32, picture: &[u8]) -> Result<Vec<u8>, String> {
    match picture {
        b"crash" => std::process::abort(),
        b"hang" => loop {
            std::hint::spin_loop();
        },
        _ => {}
    }
    let rows = picture.len() / width as usize;
    if rows < 2 {
        return Err("a picture has at least two rows".to_string());
    }
    let even_rows = picture.chunks_exact(width as usize).step_by(2);
    Ok(even_rows.flat_map(|row| row.iter().step_by(2).copied()).collect())
}

/// An error response. Its text says whether the job has begun, and so whether to repeat it is safe.
struct Failure(StatusCode, String);

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Failure {
        let status = match error {
            PoolError::Full { .. } | PoolError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            PoolError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure(status, error.to_string())
    }
}

impl From<TaskError<String>> for Failure {
    fn from(error: TaskError<String>) -> Failure {
        match error {
            TaskError::Failed(why) => Failure(StatusCode::UNPROCESSABLE_ENTITY, why),
            TaskError::Pool(error) => error.into(),
        }
    }
}

impl From<IsolatedJobError> for Failure {
    fn from(error: IsolatedJobError) -> Failure {
        let status = match error {
            IsolatedJobError::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
            IsolatedJobError::Full | IsolatedJobError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            IsolatedJobError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let has_begun = if error.has_begun() { "it had begun" } else { "it had not begun" };
        Failure(status, format!("{error} ({has_begun})"))
    }
}
