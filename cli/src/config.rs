//! `dfs config`: every setting, its value, and where that came from.

use crate::settings::{DEFAULT_FILE, Origin, SETTINGS, Settings, variable};
use crate::show;

/// Prints the settings of this run.
pub fn run(settings: &Settings, as_json: bool) {
    if as_json {
        let list: Vec<_> = SETTINGS
            .iter()
            .map(|setting| {
                serde_json::json!({"key": setting.key, "value": settings.text(setting.key), "default": setting.default,
                    "variable": variable(setting.key), "origin": origin(settings.origin(setting.key)), "help": setting.help})
            })
            .collect();
        println!("{:#}", serde_json::Value::from(list));
        return;
    }
    println!("# a flag beats the environment (DFS_ and the key in capitals), which beats the settings file");
    println!("# (--config FILE, else {DEFAULT_FILE}: [section] and name = value), which beats the default\n");
    let mut rows = vec![["setting", "value", "from", "what it is"].map(String::from).to_vec()];
    for setting in SETTINGS {
        let value = settings.text(setting.key);
        rows.push(vec![
            setting.key.into(),
            if value.is_empty() { "-".into() } else { value.to_owned() },
            origin(settings.origin(setting.key)),
            setting.help.into(),
        ]);
    }
    print!("{}", show::table(&rows));
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".into(),
        Origin::File(path) => path.display().to_string(),
        Origin::Environment(name) => name.clone(),
        Origin::Flag => "flag".into(),
    }
}
