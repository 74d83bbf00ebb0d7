//! What differs between two runs besides the servers: machine, kernel, versions and plan.

use super::saved_report::SavedReport;
use crate::run_environment::RunEnvironment;

/// Differences of two runs, as sentences.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EnvironmentDifferences {
    /// All differences.
    pub(crate) lines: Vec<String>,
    /// Whether values that depend on the speed of the machine cannot be compared as they are.
    pub(crate) has_other_machine: bool,
    /// Whether the loads differ, so that nothing can be judged.
    pub(crate) has_other_load: bool,
}

/// Compares the environments and plans of two runs.
pub(crate) fn find_differences(now: &SavedReport, before: &SavedReport) -> EnvironmentDifferences {
    let mut found = EnvironmentDifferences::default();
    let machine = machine_differences(&now.environment, &before.environment);
    found.has_other_machine = !machine.is_empty();
    found.lines.extend(machine);
    found.lines.extend(software_differences(&now.environment, &before.environment));
    let load = load_differences(now, before);
    found.has_other_load = !load.is_empty();
    found.lines.extend(load);
    found.lines.extend(length_differences(now, before));
    found
}

fn differs<T: PartialEq>(
    name: &str,
    now: T,
    before: T,
    show: impl Fn(&T) -> String,
) -> Option<String> {
    (now != before).then(|| format!("{name}: {}, in the baseline {}", show(&now), show(&before)))
}

fn text(value: &Option<&str>) -> String {
    value.unwrap_or("none").to_string()
}

fn machine_differences(now: &RunEnvironment, before: &RunEnvironment) -> Vec<String> {
    let kind = |is_virtual: &bool| if *is_virtual { "virtual" } else { "physical" }.to_string();
    let memory = |mib: &Option<u64>| mib.map_or("unknown".to_string(), |mib| format!("{mib} MiB"));
    // The kernel reserves a little more or less memory from boot to boot.
    let rounded = |mib: Option<u64>| mib.map(|mib| mib.div_ceil(256) * 256);
    let build = |is_debug: &bool| if *is_debug { "debug" } else { "release" }.to_string();
    [
        differs("CPU", &now.cpu, &before.cpu, |cpu| cpu.to_string()),
        differs("cores", now.cores, before.cores, usize::to_string),
        differs("machine", now.is_virtual_machine, before.is_virtual_machine, kind),
        differs("memory", rounded(now.memory_mib), rounded(before.memory_mib), memory),
        differs("CPU governor", now.governor.as_deref(), before.governor.as_deref(), text),
        differs("build", now.is_debug_build, before.is_debug_build, build),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn software_differences(now: &RunEnvironment, before: &RunEnvironment) -> Vec<String> {
    [
        differs("kernel", &now.kernel, &before.kernel, |kernel| kernel.to_string()),
        differs("version", &now.version, &before.version, |version| version.to_string()),
        differs("commit", now.commit.as_deref(), before.commit.as_deref(), text),
        differs("compiler", now.compiler.as_deref(), before.compiler.as_deref(), text),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn load_differences(now: &SavedReport, before: &SavedReport) -> Vec<String> {
    let name = |text: &&String| text.to_string();
    let (now_settings, before_settings) = (&now.settings, &before.settings);
    let mut lines: Vec<String> = [
        differs("scheme", &now_settings.scheme, &before_settings.scheme, name),
        differs("protocol", &now_settings.protocol, &before_settings.protocol, name),
        differs("workers", now_settings.workers, before_settings.workers, usize::to_string),
    ]
    .into_iter()
    .flatten()
    .collect();
    for own in &now.workloads {
        let Some(other) = before.workload(own.name()) else { continue };
        if own.scenario != other.scenario || own.metric != other.metric {
            lines.push(format!("workload {}: its definition has changed", own.name()));
        } else if own.about != other.about {
            lines.push(format!(
                "workload {}: {}, in the baseline {}",
                own.name(),
                own.about,
                other.about
            ));
        }
    }
    lines
}

/// Lengths and numbers of rounds: more of them is more precise, and no other load.
fn length_differences(now: &SavedReport, before: &SavedReport) -> Vec<String> {
    let seconds = |value: &f64| format!("{value} s");
    let (now, before) = (&now.settings, &before.settings);
    [
        differs("duration of a measurement", now.duration_s, before.duration_s, seconds),
        differs("warm-up", now.warm_up_s, before.warm_up_s, seconds),
    ]
    .into_iter()
    .flatten()
    .collect()
}
