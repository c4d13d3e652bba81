# Completion of clinvk(1) for bash.  It needs nothing but bash; source it, or put
# it where bash-completion looks (under this name, or as `clinvk`).

_clinvk_sessions()  # [OPTION]
{
    { clinvk sessions list "$@" -n 50 | sed -n 's/^\([0-9a-f]\{8,\}\) .*/\1/p'; } 2>/dev/null
}

# Sets `values` where the word is the value of an option; true where readline is to complete it.
_clinvk_value()
{
    case ${COMP_WORDS[before]} in
        -f | --file | --config | --results | --csv | --tasks | --junit | --markdown | --html | --status-file | --items | --tsv | --prompt-file | --schema | --repair-prompt)
            return 0 ;;  # readline knows how to quote the name of a file
        -w | --workdir | --output-dir | --root | --log-dir)
            compopt +o default -o dirnames 2>/dev/null
            return 0 ;;
        -o | --output-format)
            values='text json stream-json' ;;
        --ceiling)
            values='sandbox=read-only sandbox=workspace sandbox=full approval=always approval=auto approval=none' ;;
        -b | --backend | --backends)
            values='claude codex gemini echo aider copilot llm ollama opencode qwen' ;;
        --effort)
            values='low medium high xhigh max' ;;
        --approval-mode)
            values='default auto none always' ;;
        --sandbox-mode)
            values='default read-only workspace full' ;;
        --progress)
            values='auto table always never' ;;
        --color)
            values='auto always never' ;;
        --by)
            values='backend model label cell tags error_kind' ;;
        --status)
            values='active completed error' ;;
        -j | --max-parallel | -m | --model | --system-prompt | --max-turns | --max-tokens | --timeout | --idle-timeout | --max-output | --tag | -n | --limit \
            | --older-than | --prompt | --name | --id | --write-to | --fail-on | --max-failures | --canary | --shard | --matrix | --repeat | --wrap | --max-cost | --retries | --retry-on | --max-wait | --check | --check-timeout | --attempts | --protect | --schema-retries | --quiet-after | --log-max)
            values='' ;;
    esac
    return 1
}

_clinvk()
{
    local options values rest word=${COMP_WORDS[COMP_CWORD]} before=$((COMP_CWORD - 1)) command='' i IFS=$' \t\n'

    # `--color=al` arrives as three words, because `=` is in COMP_WORDBREAKS
    if [[ $word == '=' ]]; then
        word=''
    elif [[ ${COMP_WORDS[before]} == '=' ]]; then
        before=$((before - 1))
    fi

    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            -b | --backend | -m | --model | -w | --workdir | -o | --output-format | --effort | --schema | --approval-mode \
                | --sandbox-mode | --system-prompt | --max-turns | --max-tokens | --timeout | --idle-timeout | --max-output | --config | --wrap \
                | --progress | --color)
                if [[ ${COMP_WORDS[i + 1]} == '=' ]]; then
                    i=$((i + 1))
                fi
                i=$((i + 1)) ;;
            -*) ;;
            *)
                command=${COMP_WORDS[i]}
                break ;;
        esac
    done

    rest=" ${COMP_WORDS[*]:i + 1:COMP_CWORD - i - 1} "  # the words behind the command, with its action
    COMPREPLY=()
    case $command in
        prompt)
            options='-h --help -o --output-format -c --continue --ephemeral --dry-run --wrap --progress --color --config -b --backend
                -m --model -w --workdir --effort --schema --approval-mode --sandbox-mode --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output'
            values=$options
            _clinvk_value && return
            ;;
        resume)
            options='-h --help --last -b --backend --here -o --output-format --dry-run --wrap --progress --color --config -m --model
                --effort --schema --approval-mode --sandbox-mode --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output'
            values=$options
            if [[ $word != -* ]]; then
                values=$(_clinvk_sessions --resumable)
            fi
            _clinvk_value && return
            ;;
        sessions)
            options='-h --help --json -b --backend --status --tag --resumable -n --limit --older-than --dry-run --config'
            values=$options
            case $rest in
                *' list '*)
                    values='-h --help --json -b --backend --status --tag --resumable -n --limit' ;;
                *' clean '*)
                    values='-h --help --json --older-than --dry-run --config' ;;
                *' show '* | *' delete '*)
                    values='-h --help --json'
                    if [[ $word != -* ]]; then
                        values=$(_clinvk_sessions)
                    fi ;;
                *)
                    if [[ $word != -* ]]; then
                        values='list show delete clean'
                    fi ;;
            esac
            _clinvk_value && return
            ;;
        parallel)
            options='-h --help -f --file --prompt --prompt-file --items --csv --tsv -0 --null --name --id --write-to --emit-tasks --matrix --repeat -j --max-parallel --fail-fast --max-failures --canary --shard --max-cost --allow-unknown-cost
                --limit --one-per-workdir --retries --retry-on --retry-acted --max-wait --json --jsonl -q --quiet --output-dir
                --overwrite --results --resume --ceiling --root --allow-commands
                --check --check-timeout --attempts --repair-prompt --require-change --protect --schema-retries
                --dry-run --wrap --progress --color --status-file --quiet-after --log-dir --log-max --config -b --backend -m --model -w --workdir --effort --schema --approval-mode --sandbox-mode
                --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output'
            values=$options
            _clinvk_value && return
            if [[ $values == "$options" && $word != -* ]]; then
                return  # an item, which is often a file
            fi
            ;;
        chain)
            options='-h --help -f --file --retries --retry-on --retry-acted --max-wait --json --jsonl -q --quiet --ceiling --root --allow-commands
                --check --check-timeout --attempts --repair-prompt --require-change --protect --schema-retries
                --dry-run --wrap --progress --color --status-file --quiet-after --log-dir --log-max --config
                -b --backend -m --model -w --workdir --effort --schema --approval-mode --sandbox-mode --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output'
            values=$options
            _clinvk_value && return
            ;;
        compare)
            options='-h --help --backends --all-backends --sequential --json --jsonl -q --quiet --dry-run --wrap --progress --color --status-file --quiet-after --log-dir --log-max --config
                -m --model -w --workdir --effort --schema --approval-mode --sandbox-mode --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output'
            values=$options
            _clinvk_value && return
            ;;
        report)
            options='-h --help --json --jsonl --csv -q --quiet --by --tasks --fail-on --junit --markdown --with-output --html --without-output --color --config'
            values=$options
            _clinvk_value && return
            if [[ $values == "$options" && $word != -* ]]; then
                return  # a file, which readline completes
            fi
            ;;
        config)
            options='-h --help --config --json'
            values=$options
            case $rest in
                *' path '*)
                    values='-h --help --config' ;;
                *' show '*) ;;
                *)
                    if [[ $word != -* ]]; then
                        values='show path'
                    fi ;;
            esac
            _clinvk_value && return
            ;;
        doctor)
            options='-h --help --config --json'
            values=$options
            _clinvk_value && return
            ;;
        version)
            options='-h --help'
            values=$options
            ;;
        '')
            options='-h --help --version'
            values="parallel prompt chain compare resume sessions report config doctor version $options"
            if ((COMP_CWORD > 1)); then  # the options of a prompt without the word `prompt`
                values="-o --output-format -c --continue --ephemeral --dry-run --wrap --progress --color --config -b --backend
                    -m --model -w --workdir --effort --schema --approval-mode --sandbox-mode --literal --answer-only --system-prompt --max-turns --max-tokens --timeout --idle-timeout --max-output"
            fi
            _clinvk_value && return
            ;;
        *)
            values='' ;;
    esac
    compopt +o default 2>/dev/null
    # shellcheck disable=SC2207  # no word of ours holds white space or a pattern
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}

complete -o default -F _clinvk clinvk
