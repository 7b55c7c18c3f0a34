//! Which options each component gets: the keys of its group that the host does not own, read and checked by the component's schema.

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::range::{Range, plain};
use maskdiff_config::shape::{Of, Shape, choices, items};
use maskdiff_config::{Config, Layers, dotted, groups, hints, options, original, trust, typed};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_records::run_dir::toml_of;
use serde_json::{Map, Value};

use crate::component::{self, ComponentError};
use crate::plugins::{self, Choice, Choices, Registry};

use ComponentKind::{Backbone, Noise, Parameterization, Process, Sampler};

/// Options of one kind of component: which keys of the configuration they are.
struct Owner<'a> {
    kind: ComponentKind,
    name: &'a str,
    /// Option to dotted key, for messages.
    keys: Vec<(String, String)>,
    options: Map<String, Value>,
}

/// An option of the backbone that is set and takes back one of the capabilities in `needs`, and which: the schema of such an option
/// names them as `x-withdraws`.
pub fn withdrawn<'w>(
    registry: &Registry,
    choices: &Choices,
    needs: &[&'w str],
) -> Result<Option<(String, &'w str)>> {
    let (_, backbone) = registry.find(ComponentKind::Backbone, &choices.backbone.name)?;
    let properties = backbone.schema["properties"].as_object();
    for (option, about) in properties.into_iter().flatten() {
        if choices.backbone.options[option] != true {
            continue;
        }
        let taken = about["x-withdraws"].as_array();
        let takes = |need: &str| taken.is_some_and(|words| words.iter().any(|word| word == need));
        if let Some(need) = needs.iter().find(|need| takes(need)) {
            return Ok(Some((option.clone(), need)));
        }
    }
    Ok(None)
}

/// The part of a configuration that needs the plugins: the components that it chooses, and their options.
pub trait Choose {
    /// Drops what was set for another component: options that the chosen one does not have, from a layer before the one
    /// that chose it. So `sampling.predictor=NAME` on the command line does not trip over an experiment's options.
    fn settle(&mut self, registry: &Registry) -> Result<()>;

    /// The components of the model with their options, each checked against its component's schema.
    fn choices(&self, registry: &Registry) -> Result<Choices>;

    /// The sampler with its options, checked against its schema.
    fn sampler(&self, registry: &Registry) -> Result<Choice>;

    /// The numbers that a key may hold, where it holds some.
    fn range(&self, key: &str, registry: &Registry) -> Option<Range>;

    /// Points a component's error about one of its options at the place that set it.
    fn locate(&self, error: Error) -> Error;
}

impl Choose for Config {
    fn settle(&mut self, registry: &Registry) -> Result<()> {
        let mut strangers = Vec::new();
        for kind in [Backbone, Process, Noise, Parameterization, Sampler] {
            let (_, component) =
                registry.find(kind, kind.chosen(self)).map_err(|e| at_choice(self, kind, e))?;
            let groups = kind.groups();
            for group in groups {
                read_words(&mut self.layers, group, component, registry);
            }
            self.layers.show();
            let since = self.layers.rank(kind.key());
            // What another program's checkpoint says is not all of one component; but one that takes any option is ours.
            let open = component.takes_any_option();
            let theirs = self
                .foreign
                .clone()
                .filter(|theirs| !(open && self.layers.source(kind.key()) == *theirs));
            for group in groups {
                let options = self.layers.options(group);
                let unknown =
                    options.keys().filter(|o| options::schema(&component.schema, o).is_none());
                let keys = unknown.map(|option| dotted(group, option));
                let foreign = |key: &String| theirs.as_ref() == Some(&self.layers.source(key));
                // What is said by hand is meant.
                let before =
                    |key: &String| self.layers.rank(key) < since && !self.layers.is_by_hand(key);
                let old = keys.filter(|key| before(key) || foreign(key));
                strangers.extend(old.map(|key| (key, open)));
            }
        }
        for (key, open) in strangers {
            // One that takes any option might have meant this one.
            if open {
                tracing::warn!(
                    "`{key}` was set for another component and is dropped: say it again if it is meant"
                );
            } else {
                tracing::info!("`{key}` was set for another component and is dropped");
            }
            self.layers.forget(&key);
        }
        self.layers.show();
        Ok(())
    }

    fn choices(&self, registry: &Registry) -> Result<Choices> {
        let choice = |kind| choice(self, registry, kind);
        Ok(Choices {
            backbone: choice(Backbone)?,
            process: choice(Process)?,
            noise: choice(Noise)?,
            parameterization: choice(Parameterization)?,
        })
    }

    fn sampler(&self, registry: &Registry) -> Result<Choice> {
        choice(self, registry, Sampler)
    }

    fn range(&self, key: &str, registry: &Registry) -> Option<Range> {
        if let Some(field) = groups::field(key) {
            return Some(field.range);
        }
        let (group, option) = key.split_once('.').unwrap_or(("", key));
        let kind = ComponentKind::ALL.into_iter().find(|kind| kind.groups().contains(&group))?;
        let schema = &registry.find(kind, kind.chosen(self)).ok()?.1.schema;
        Some(Range::of_schema(schema, options::schema(schema, option)?))
    }

    fn locate(&self, error: Error) -> Error {
        let Some(ComponentError { component, error: said }) = component::said(&error) else {
            return error;
        };
        let kind = component.split(' ').next().and_then(ComponentKind::named);
        let groups = kind.unwrap_or(Parameterization).groups();
        let words = named_options(said);
        let set = words.iter().find_map(|option| {
            let group = groups.iter().find(|g| self.layers.options(g).contains_key(*option))?;
            Some(dotted(group, option))
        });
        match set {
            Some(key) => {
                let message = said.to_string();
                let named = message.contains(&format!("`{key}`"));
                let place = if named { String::new() } else { format!("`{key}`: ") };
                self.layers.error(&key, &format!("{component}: {place}{message}"), &said.hint)
            }
            None => error,
        }
    }
}

fn choice(config: &Config, registry: &Registry, kind: ComponentKind) -> Result<Choice> {
    let name = kind.chosen(config);
    let (_, component) = registry.find(kind, name).map_err(|e| at_choice(config, kind, e))?;
    plugins::refuse_fault(component)?;
    let mut owner = Owner { kind, name, keys: Vec::new(), options: Map::new() };
    for group in kind.groups() {
        for (option, value) in options::flat(&component.schema, config.layers.options(group)) {
            let key = dotted(group, &option);
            owner.keys.push((option.clone(), key));
            owner.options.insert(option, value);
        }
    }
    follow(config, component, &mut owner);
    let known = properties(component);
    // One that takes any option checks them itself.
    let open = component.takes_any_option();
    settle_argument(config, registry, &mut owner)?;
    for (option, value) in &mut owner.options {
        if let Some(own) = options::schema(&component.schema, option) {
            Shape::of_schema(&component.schema, own).settle_option(value);
        }
    }
    for (option, key) in &owner.keys {
        if known.contains(option) {
            check_type(config, component, option, &owner.options[option], key)?;
            check_choice(config, component, option, &owner.options[option], key)?;
            check_range(config, component, option, key)?;
            continue;
        }
        if open {
            continue;
        }
        if options::is_table(&component.schema, option) {
            let below = known.iter().filter_map(|name| name.strip_prefix(&format!("{option}.")));
            let hint = format!("`{key}` holds {}", below.collect::<Vec<&str>>().join(", "));
            let message = format!("`{key}` has no value of its own: set one of its keys");
            return Err(config.layers.error(key, &message, &hint));
        }
        let others = registry.having(kind, option);
        if others.is_empty() {
            if let Some(taken) = original::option(key, &owner.options[option]) {
                taken?;
                owner.options.remove(option);
                continue;
            }
            return Err(unknown_option(config, registry, &owner, option, key, &known));
        }
        // What is some other's default is no mistake here: published command lines say `T=0` to every method.
        let value = owner.options.remove(option).unwrap_or_default();
        let mut defaults = others.iter().map(|other| options::value(&other.defaults, option));
        if !defaults.any(|default| options::same(default, &value)) {
            let names: Vec<String> = others.iter().map(|c| format!("`{}`", c.name)).collect();
            return Err(foreign_option(config, &owner, key, &names.join(", ")));
        }
    }
    Ok(Choice { name: name.to_string(), options: options::nested(owner.options) })
}

/// Sets options that are not set to the value of the key that they follow: `x-follows` in their schema.
fn follow(config: &Config, component: &ComponentInfo, owner: &mut Owner<'_>) {
    let properties = component.schema["properties"].as_object();
    for (option, about) in properties.into_iter().flatten() {
        let Some(key) = about["x-follows"].as_str() else { continue };
        let followed = config.layers.value(key).filter(|value| !value.is_null());
        if let (Some(value), false) = (followed, owner.options.contains_key(option)) {
            owner.keys.push((option.clone(), key.to_string()));
            owner.options.insert(option.clone(), value);
        }
    }
}

/// The argument of a component that has one, which may be a file of code: as it stands behind the name, or as an option.
fn settle_argument(config: &Config, registry: &Registry, owner: &mut Owner<'_>) -> Result<()> {
    const ARGUMENT: &str = "argument";
    let (kind, name) = (owner.kind, owner.name);
    let said = match registry.argument(kind, name) {
        Some(argument) => Some((kind.key().to_string(), argument.to_string())),
        None => {
            let takes = |c: &ComponentInfo| options::schema(&c.schema, ARGUMENT).is_some();
            let value = owner.options.get(ARGUMENT).and_then(Value::as_str);
            let key = owner.keys.iter().rev().find(|(option, _)| option == ARGUMENT);
            let found = value.zip(key).map(|(value, (_, key))| (key.clone(), value.to_string()));
            found.filter(|_| registry.find(kind, name).is_ok_and(|(_, c)| takes(c)))
        }
    };
    let Some((key, argument)) = said else { return Ok(()) };
    let name = name.split(':').next().unwrap_or(name);
    let used = trust::argument(config, &key, name, &argument)?;
    owner.options.insert(ARGUMENT.into(), used.into());
    Ok(())
}

fn unknown_option(
    config: &Config,
    registry: &Registry,
    owner: &Owner<'_>,
    option: &str,
    key: &str,
    known: &[String],
) -> Error {
    // An option in a misspelled table is reported as it was written.
    let inner = match &owner.options[option] {
        Value::Object(inner) => inner.keys().next().map(|inner| format!("{key}.{inner}")),
        _ => None,
    };
    let key = inner.as_deref().unwrap_or(key);
    let right = hints::right_keys(key, &all_keys(config, registry));
    // In the same group, its own name is enough; not so in a table of a group.
    let group = key.rsplit_once('.').filter(|(group, _)| !group.contains('.'));
    let group = group.map_or(String::new(), |(group, _)| format!("{group}."));
    let spelled = |right: &String| match config.layers.spelled_as(key, right) {
        same if same == *right => right.strip_prefix(&group).unwrap_or(right).to_string(),
        variable => variable,
    };
    let right: Vec<String> = right.iter().map(spelled).collect();
    let hint = match original::sentence(key).or_else(|| hints::did_you_mean(&right)) {
        Some(hint) => hint,
        None if known.is_empty() => format!("{} `{}` has no options", owner.kind, owner.name),
        None => format!("options of {} `{}`: {}", owner.kind, owner.name, known.join(", ")),
    };
    let message =
        format!("unknown key `{key}`: neither the host nor {} `{}` has it", owner.kind, owner.name);
    config.layers.error(key, &message, &hint)
}

/// Every key of the host and of the chosen components, dotted; those of a component before those of the host.
fn all_keys(config: &Config, registry: &Registry) -> Vec<String> {
    let options = ComponentKind::ALL.into_iter().flat_map(|kind| {
        let found = registry.find(kind, kind.chosen(config)).ok();
        let names = found.into_iter().flat_map(|(_, component)| properties(component));
        names.into_iter().map(move |name| kind.option_key(&name))
    });
    options.chain(hints::host_keys()).collect()
}

/// Checks that an option is of the type that its component reads.
fn check_type(
    config: &Config,
    component: &ComponentInfo,
    option: &str,
    value: &Value,
    key: &str,
) -> Result<()> {
    let root = &component.schema;
    let shape = options::schema(root, option).map(|own| Shape::of_schema(root, own));
    let fault = shape.and_then(|shape| typed::fault(key, shape, value));
    fault.map_or(Ok(()), |(message, hint)| {
        let who = format!("{} `{}`", component.kind, component.name);
        Err(config.layers.error(key, &format!("{who}: {message}"), &hint))
    })
}

/// Checks an option that is one of a few words.
fn check_choice(
    config: &Config,
    component: &ComponentInfo,
    option: &str,
    value: &Value,
    key: &str,
) -> Result<()> {
    let schema = &component.schema;
    let known = options::schema(schema, option).map_or_else(Vec::new, |own| choices(schema, own));
    match value.as_str().filter(|_| !known.is_empty()) {
        Some(word) if known.contains(&word) => Ok(()),
        Some(word) => Err(hints::not_listed(&config.layers, key, word, &known)),
        None => Ok(()),
    }
}

/// Checks an option that is a number, or several.
fn check_range(config: &Config, component: &ComponentInfo, option: &str, key: &str) -> Result<()> {
    let root = &component.schema;
    let Some(schema) = options::schema(root, option) else { return Ok(()) };
    let list = Range::of_schema(root, items(root, schema));
    let alone = config.layers.number(key).map(|number| (number, Range::of_schema(root, schema)));
    let several = config.layers.numbers(key).into_iter().map(|number| (number, list));
    for (number, range) in alone.into_iter().chain(several) {
        if let Some((must, hint)) = range.fault(number) {
            let who = format!("{} `{}`", component.kind, component.name);
            let message = format!("{who}: `{key}` {must}, got {}", plain(number));
            return Err(config.layers.error(key, &message, &hint));
        }
    }
    Ok(())
}

fn foreign_option(config: &Config, owner: &Owner<'_>, key: &str, others: &str) -> Error {
    let (kind, name) = (owner.kind, owner.name);
    let message = format!("`{key}` means nothing to {kind} `{name}`");
    config.layers.error(key, &message, &format!("leave it out; it is an option of {others}"))
}

/// Points an unknown component's error at the key that named it.
fn at_choice(config: &Config, kind: ComponentKind, error: Error) -> Error {
    let key = kind.key();
    match error.kind {
        Kind::Plugin => error.and(&format!(" (`{key}` from {})", config.layers.source(key))),
        _ => error,
    }
}

/// The resolved configuration as TOML, with the source of every value and the numbers that it may be as a comment.
pub fn shown(config: &Config, registry: &Registry) -> String {
    let mut leaves = config.layers.leaves();
    for (key, _, about) in &mut leaves {
        if let Some(words) = config.range(key, registry).and_then(Range::in_words) {
            *about += &format!("; {words}");
        }
    }
    toml_of(leaves)
}

/// The names of a component's options.
fn properties(component: &ComponentInfo) -> Vec<String> {
    options::all(&component.schema).into_iter().map(|(name, _)| name).collect()
}

/// Reads the words of a group as the component that it configures has its options.
fn read_words(layers: &mut Layers, group: &str, component: &ComponentInfo, registry: &Registry) {
    let all = registry.components();
    let others: Vec<&ComponentInfo> =
        all.iter().map(|(_, other)| *other).filter(|other| other.kind == component.kind).collect();
    let schema = &component.schema;
    for (option, _) in options::flat(schema, layers.options(group)) {
        let same = |name: &String| name.eq_ignore_ascii_case(&option);
        let known = options::all(schema);
        let exact = known.iter().find(|(name, _)| *name == option);
        let Some((name, own)) = exact.or_else(|| known.iter().find(|(name, _)| same(name))) else {
            // It may be another component's, for which it is named as that has it.
            let name = others.iter().find_map(|other| properties(other).into_iter().find(same));
            let name = name.unwrap_or_else(|| option.clone());
            layers.read_option(group, &option, &name, Shape::one(Of::Any));
            continue;
        };
        layers.read_option(group, &option, name, Shape::of_schema(schema, own));
    }
}

/// The options that a component's error is about: the one it names as such, or those in back-ticks in its words.
fn named_options(error: &maskdiff_plugin_api::PluginError) -> Vec<&str> {
    if !error.config_path.is_empty() {
        return vec![&error.config_path];
    }
    if error.kind != maskdiff_plugin_api::Kind::Config {
        return Vec::new();
    }
    let quoted = error.chain.iter().flat_map(|text| text.split('`').skip(1).step_by(2));
    quoted.map(|word| word.rsplit('.').next().unwrap_or(word)).collect()
}
