use super::*;
use crate::load::{LoadPlan, TargetUrl};

fn parse(text: &str) -> Result<Workload, String> {
    Workload::parse("mine", "mine.toml", text)
}

#[track_caller]
fn requests(workload: &Workload) -> &RequestLoad {
    match &workload.measured_load().kind {
        LoadKind::Requests(requests) => requests,
        other => panic!("{other:?}"),
    }
}

fn base_plan() -> LoadPlan {
    LoadPlan::new(TargetUrl::parse("https://127.0.0.1:3000").expect("url"))
}

#[test]
fn the_scenarios_of_the_program_are_valid_and_their_names_find_them() {
    for one in built_in_scenarios() {
        let workload = Workload::built_in(one.name()).expect("a built-in scenario");
        assert_eq!(workload.name(), one.name());
        let is_requests = matches!(workload.measured_load().kind, LoadKind::Requests(_));
        for http2 in [false, true].into_iter().filter(|_| is_requests) {
            let plans = load_plans::ScenarioPlans::new(&workload, &base_plan(), http2);
            let plans = plans.unwrap_or_else(|why| panic!("{}: {why}", one.name()));
            let readers = usize::from(plans.readers.is_some());
            assert_eq!(plans.background.len() + readers + 1, workload.loads.len());
        }
        let (first, rest) = one.text().split_once('\n').expect("lines");
        assert!(first.starts_with("# ") && rest.starts_with("description = "), "{}", one.text());
    }
    let why = Workload::built_in("idle").expect_err("none");
    assert!(why.contains("noisy-neighbour"), "{why}");
}

#[test]
fn the_json_form_of_a_scenario_has_the_keys_of_its_file() {
    for one in built_in_scenarios() {
        let workload = one.workload();
        let json = serde_json::to_value(&*workload).expect("JSON");
        let text = toml::to_string(&json).expect("TOML");
        let again = Workload::parse("other", "again.toml", &text);
        let again = again.unwrap_or_else(|why| panic!("{why}\n{text}"));
        assert_eq!(again, *workload, "{text}");
    }
}

#[test]
fn a_short_file_is_filled_with_the_defaults() {
    let workload = parse("description = \"d\"\n[[load]]").expect("valid");
    assert_eq!((workload.name(), workload.metric), ("mine", ComparedMetric::RequestsPerSecond));
    let load = requests(&workload);
    let request = load.request.as_ref().expect("one request");
    assert_eq!((request.path.as_str(), request.method.as_str()), ("/", "GET"));
    assert_eq!((load.connections, load.threads, load.rate), (64, 2, None));
    assert_eq!(load.timeout, Duration::from_secs(3));
    let with_rate = parse("description = \"d\"\n[[load]]\nrate = \"12.5%\"").expect("valid");
    assert_eq!(with_rate.metric, ComparedMetric::P99Latency);
    assert_eq!(requests(&with_rate).rate, Some(LoadRate::PartOfCapacity(0.125)));
}

#[test]
fn the_keys_of_a_load_become_its_plan() {
    let workload = parse(
        "description = \"d\"\n[[load]]\nname = \"upload\"\nmeasured = true\npath = \"/echo?a=b\"\nbody-size = \"2KiB\"\n\
         headers = [\"Accept: a/b\"]\nconnections = 5\nrate = 70\ntimeout = \"1500ms\"\n\
         [[load]]\nname = \"beside\"\npath = \"/x\"\nhttp2 = true\nstreams = 4\n",
    )
    .expect("valid");
    let plans = load_plans::ScenarioPlans::new(&workload, &base_plan(), false).expect("plans");
    let plan = &plans.measured.plan;
    assert_eq!(plan.target.to_string(), "https://127.0.0.1:3000/echo?a=b");
    assert_eq!((plan.method.as_str(), plan.body.as_ref().map(Vec::len)), ("POST", Some(2048)));
    assert_eq!((plan.connections, plan.rate, plan.headers.len()), (5, Some(70), 1));
    assert_eq!(plan.timeout, Duration::from_millis(1500));
    let beside = &plans.background[0].plan;
    assert_eq!(beside.http2_streams, Some(4));
    // It runs for as long as the measured load.
    assert_eq!(beside.duration, base_plan().warm_up + base_plan().duration);
}

#[test]
fn mixes_ramps_and_faults_become_a_plan() {
    let workload = parse(
        "description = \"d\"\nduration = \"4s\"\n[[load]]\nrate = \"10%\"\nrate-at-end = 900\n\
         [[load.request]]\nweight = 3\n[[load.request]]\nname = \"upload\"\npath = \"/echo\"\nbody-size = 10\n\
         [[fault]]\nkind = \"reload\"\nat = \"1s\"\n[[fault]]\nkind = \"freeze\"\nevery = \"2s\"\nlength = \"500ms\"\n\
         [[file]]\npath = \"a/b.txt\"\nsize = \"1KiB\"\n",
    )
    .expect("valid");
    let required: Vec<(&str, &str)> = workload
        .required_requests()
        .into_iter()
        .map(|request| (request.method.as_str(), request.path.as_str()))
        .collect();
    assert_eq!(required, [("GET", "/"), ("POST", "/echo")]);
    let json = serde_json::to_value(&workload).expect("JSON");
    assert_eq!(Workload::from_report("of-a-report", &json), Ok(workload.clone()));
    let base = LoadPlan { duration: Duration::from_secs(4), ..base_plan() };
    let mut planned =
        load_plans::ScenarioPlans::new(&workload, &base, false).expect("plans").measured;
    // The rates are known after the closed loop.
    assert_eq!((planned.plan.rate, planned.plan.rate_at_end), (None, None));
    assert_eq!(planned.capacity_plan().validate(), Ok(()));
    planned.set_capacity(2000.0);
    let plan = &planned.plan;
    assert_eq!((plan.rate, plan.rate_at_end), (Some(200), Some(900)));
    let kinds: Vec<(&str, u32)> =
        plan.mix.iter().map(|kind| (kind.name.as_str(), kind.weight)).collect();
    assert_eq!(kinds, [("GET /", 3), ("upload", 1)]);
    assert_eq!(plan.mix[1].method, "POST");
    let faults = plan.faults.expect("faults");
    assert!(faults.has_kind(FaultKind::Reload) && !faults.has_kind(FaultKind::Kill));
    assert!(
        workload.check_duration(Duration::from_secs(2)).is_err(),
        "the freeze would come after it"
    );
}

/// Returns a file with one load that has these lines.
fn with_load(lines: &str) -> String {
    format!("description = \"d\"\n\n[[load]]\n{lines}\n")
}

#[track_caller]
fn assert_mistake(text: &str, pieces: [&str; 2]) {
    let why = parse(text).expect_err(text);
    for piece in pieces {
        assert!(why.contains(piece), "{piece} is not in {why}");
    }
}

#[test]
fn mistakes_in_a_load_name_the_line_the_key_and_what_is_valid() {
    for (text, pieces) in [
        (with_load("conections = 5"), ["mine.toml:4: ", "(did you mean \"connections\"?)"]),
        (with_load("zzz = 5"), ["unknown key [[load]] \"zzz\"", "the keys are name, measured"]),
        (with_load("connections = 0"), [":4: [[load]] connections = 0: ", "from 1 to 10000"]),
        (with_load("connections = \"64\""), ["connections = \"64\"", "a whole number"]),
        (with_load("connections = 6.5"), ["connections = 6.5", "a whole number"]),
        (with_load("timeout = 3"), ["timeout = 3: give a duration", "\"1s\" or \"500ms\""]),
        (with_load("timeout = \"3\""), ["timeout = \"3\": give a duration", "unit"]),
        (with_load("timeout = \"3sec\""), ["timeout = \"3sec\"", "unit"]),
        (with_load("timeout = \"2h\""), ["timeout = \"2h\"", "to 3600s"]),
        (with_load("body-size = \"1MB\""), ["body-size = \"1MB\"", "\"64KiB\""]),
        (with_load("rate = \"80\""), ["rate = \"80\"", "\"80%\""]),
        (with_load("rate = \"800%\""), ["rate = \"800%\"", "\"200%\""]),
        (with_load("rate = 0"), ["rate = 0", "from 1 to"]),
        (with_load("rate = 0.8"), ["rate = 0.8", "\"80%\""]),
        (with_load("path = \"users\""), ["path = \"users\"", "begins with /"]),
        (with_load("path = \"/a b\""), ["path = \"/a b\"", "percent-encode"]),
        (with_load("method = \"GE T\""), ["method = \"GE T\"", "\"POST\""]),
        (with_load("headers = \"A: b\""), ["headers = \"A: b\"", "list"]),
        (with_load("headers = [\"A\"]"), ["headers = [\"A\"]", "Name: value"]),
        (with_load("rate-at-end = 5"), ["[[load]] rate-at-end", "needs rate"]),
        (with_load("rate = 5\nconnection-ramp = \"1s\""), ["connection-ramp", "without rate"]),
        (with_load("path = \"/a\"\n[[load.request]]"), [":4: [[load]] path", "keys there"]),
        (
            with_load("[[load.request]]\nweight = 0"),
            [":5: [[load.request]] weight = 0", "1 to 1000"],
        ),
        (with_load("[[load.request]]\n[[load.request]]"), ["two requests", "its own"]),
    ] {
        assert_mistake(&text, pieces);
    }
}

#[test]
fn mistakes_in_a_file_name_the_line_the_key_and_what_is_valid() {
    for (text, pieces) in [
        (with_load("[[fault]]\nevery = \"1s\""), [":4: [[fault]] there is no kind", "\"kill\""]),
        (with_load("[[fault]]\nkind = \"kill\""), ["there is no time", "every = \"5s\""]),
        (
            with_load("[[fault]]\nkind = \"kill\"\nevery = \"1s\"\nlength = \"1s\""),
            ["length = \"1s\"", "only a freeze"],
        ),
        (
            format!(
                "duration = \"1s\"\n{}",
                with_load("[[fault]]\nkind = \"kill\"\nevery = \"1s\"")
            ),
            ["the first kill", "after the measurement of 1s"],
        ),
        (with_load("[[file]]\npath = \"../a\"\nsize = 1"), ["path = \"../a\"", "below the root"]),
        (with_load("[[file]]\npath = \"a\""), ["there is no size", "4KiB"]),
        (
            with_load("[[file]]\npath = \"a\"\nsize = 1\n[[file]]\npath = \"a/b\"\nsize = 1"),
            ["\"a/b\" is there already", "directory"],
        ),
        (with_load("close = \"yes\""), ["close = \"yes\"", "true or false"]),
        (with_load("close = true\npipeline = 2"), [":5: [[load]] pipeline = 2", "one request"]),
        (with_load("rate = 5\npipeline = 2"), ["pipeline = 2", "not pipelined"]),
        (with_load("streams = 2"), ["streams = 2", "http2 = true"]),
        (with_load("http2 = true\npipeline = 2"), ["pipeline = 2", "use streams"]),
        (with_load("close = true\nresume = true"), ["resume = true", "https = true"]),
        (with_load("kind = \"request\""), ["kind = \"request\"", "\"requests\""]),
        (with_load("measured = false"), ["no load is measured", "measured = true"]),
        (with_load("name = \"a b\""), ["name = \"a b\"", "letters, digits"]),
        (with_load("[[load]]"), ["no load is measured", "in one [[load]]"]),
        ("description = \"d\"".to_string(), ["there are 0 loads", "write [[load]]"]),
        ("[[load]]".to_string(), ["no description", "description = \"…\""]),
        ("description = \"d\"\nload = 5".to_string(), [":2: load is not a table", "[[load]]"]),
        ("description = \"d\"\n[load]".to_string(), ["load is not a table", "[[load]]"]),
        (
            "description = \"d\"\nmetric = \"rps\"\n[[load]]".to_string(),
            ["metric = \"rps\"", "\"p99-latency\""],
        ),
        (
            "description = \"d\"\nmetric = \"requests-per-second\"\n[[load]]\nrate = 5".to_string(),
            ["says nothing", "\"p99-latency\""],
        ),
        ("description = d".to_string(), ["mine.toml:1: not TOML: ", ""]),
        (
            "descriptoin = \"d\"".to_string(),
            ["unknown key \"descriptoin\"", "mean \"description\""],
        ),
    ] {
        assert_mistake(&text, pieces);
    }
    let why = Workload::parse("my file", "my file.toml", "description = \"d\"\n[[load]]")
        .expect_err("name");
    assert!(why.contains("write a name"), "{why}");
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/scenarios.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("an end"))
        .collect();
    assert!(examples.len() >= 6, "{page}");
    for example in examples {
        let workload = parse(example).unwrap_or_else(|why| panic!("{why}\n{example}"));
        workload.check_duration(Duration::from_secs(10)).expect(example);
    }
    for one in built_in_scenarios() {
        assert!(page.contains(&format!("`{}`", one.name())), "{} is not on the page", one.name());
    }
}

#[test]
fn kinds_of_load_have_their_own_keys_defaults_and_metrics() {
    let of_kind = |lines: &str| parse(&format!("description = \"d\"\n[[load]]\n{lines}"));
    let kind = |lines: &str| {
        let workload = of_kind(lines).expect(lines);
        (workload.metric, workload.loads[0].kind.clone())
    };
    let (metric, idle) = kind("kind = \"idle-connections\"\nconnections = 50000");
    assert_eq!(metric, ComparedMetric::IdleMemory);
    let LoadKind::IdleConnections(idle) = idle else { panic!("{idle:?}") };
    assert_eq!((idle.connections, idle.quiet), (50_000, Duration::from_secs(2)));
    let (metric, echo) = kind("kind = \"websocket-echo\"\nmessage-size = \"4KiB\"");
    assert_eq!(metric, ComparedMetric::RoundTripsPerSecond);
    let LoadKind::WebsocketEcho(echo) = echo else { panic!("{echo:?}") };
    assert_eq!((echo.request.path.as_str(), echo.message_size), ("/websocket", 4096));
    let (metric, kills) = kind("kind = \"worker-kills\"\nkills = 3\nconnections = 7");
    assert_eq!(metric, ComparedMetric::TimeToServe);
    let LoadKind::WorkerKills(kills) = kills else { panic!("{kills:?}") };
    assert_eq!((kills.kills, kills.requests.connections), (3, 7));
    assert_eq!(kind("kind = \"reloads\"").0, ComparedMetric::RequestsLost);
    let gap = parse("description = \"d\"\nmetric = \"longest-gap\"\n[[load]]\nkind = \"reloads\"");
    let gap = gap.expect("valid").compared_metrics();
    let of_reloads =
        [ComparedMetric::LongestGap, ComparedMetric::RequestsLost, ComparedMetric::P99Latency];
    assert_eq!(gap, of_reloads);
    for (lines, piece) in [
        ("kind = \"idle\"", "one of \"requests\", \"idle-connections\""),
        (
            "kind = \"idle-connections\"\nrate = 5",
            "rate = 5: a load of the kind \"idle-connections\"",
        ),
        ("quiet = \"2s\"", "quiet = \"2s\": a load of the kind \"requests\""),
        ("kind = \"slow-readers\"", "slow readers are not measured"),
        ("kind = \"worker-kills\"\nrate = \"50%\"", "a number of requests per second"),
        ("kind = \"reloads\"\nmeasured = true\n[[load]]", "runs alone"),
        ("measured = true\n[[load]]\nkind = \"reloads\"", "must be the measured one"),
        ("kind = \"websocket-echo\"\nbody-size = 3", "a GET without a body"),
    ] {
        let why = of_kind(lines).expect_err(lines);
        assert!(why.contains(piece), "{lines}: {why}");
    }
    let why =
        parse("description = \"d\"\nmetric = \"time-to-serve\"\n[[load]]").expect_err("wrong");
    assert!(why.contains("requests-per-second"), "{why}");
}

#[test]
fn slow_readers_run_beside_the_measured_load() {
    let workload = Workload::built_in("slow-readers").expect("built in");
    let plans = load_plans::ScenarioPlans::new(&workload, &base_plan(), false).expect("plans");
    let readers = plans.readers.expect("readers");
    assert_eq!((readers.connections, readers.bytes_per_second), (32, 16 * 1024));
    assert_eq!(readers.request.target.to_string(), "https://127.0.0.1:3000/bytes/1073741824");
    assert_eq!(plans.measured.plan.rate, Some(500));
    assert!(workload.compared_metrics().contains(&ComparedMetric::SlowReaderEffect));
}
