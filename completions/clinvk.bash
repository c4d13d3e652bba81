# Completion of clinvk(1) for bash.  It needs nothing but bash; source it, or put
# it where bash-completion looks (under this name, or as `clinvk`).

_clinvk()
{
    local options values word=${COMP_WORDS[COMP_CWORD]} before=$((COMP_CWORD - 1)) command='' i IFS=$' \t\n'

    # `--color=al` arrives as three words, because `=` is in COMP_WORDBREAKS
    if [[ $word == '=' ]]; then
        word=''
    elif [[ ${COMP_WORDS[before]} == '=' ]]; then
        before=$((before - 1))
    fi

    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} != -* ]]; then
            command=${COMP_WORDS[i]}
            break
        fi
    done

    COMPREPLY=()
    case $command in
        parallel)
            options='-h --help -f --file -j --max-parallel --fail-fast --json --jsonl -q --quiet --output-dir
                --ceiling --root --allow-commands --dry-run --progress --color -b --backend -m --model -w --workdir --approval-mode --sandbox-mode
                --system-prompt --max-turns --max-tokens --timeout'
            case ${COMP_WORDS[before]} in
                -f | --file)
                    return ;;  # to readline, which knows how to quote the name of a file
                -w | --workdir | --output-dir | --root)
                    compopt +o default -o dirnames 2>/dev/null
                    return ;;
                --ceiling)
                    values='sandbox=read-only sandbox=workspace sandbox=full approval=always approval=auto approval=none' ;;
                -b | --backend)
                    values='claude codex gemini echo' ;;
                --approval-mode)
                    values='default auto none always' ;;
                --sandbox-mode)
                    values='default read-only workspace full' ;;
                --progress | --color)
                    values='auto always never' ;;
                -j | --max-parallel | -m | --model | --system-prompt | --max-turns | --max-tokens | --timeout)
                    values='' ;;
                *)
                    values=$options ;;
            esac
            ;;
        doctor)
            options='-h --help --json'
            values=$options
            ;;
        version)
            options='-h --help'
            values=$options
            ;;
        '')
            options='-h --help --version'
            values="parallel doctor version $options"
            ;;
        *)
            values='' ;;
    esac
    compopt +o default 2>/dev/null
    # shellcheck disable=SC2207  # no word of ours holds white space or a pattern
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}

complete -o default -F _clinvk clinvk
