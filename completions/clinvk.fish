# Completion of clinvk(1) for fish: put it into a directory of $fish_complete_path.

complete -c clinvk -f

complete -c clinvk -n __fish_use_subcommand -a parallel -d 'run a batch of tasks'
complete -c clinvk -n __fish_use_subcommand -a doctor -d 'show which backends can be used'
complete -c clinvk -n __fish_use_subcommand -a version -d 'show the version'
complete -c clinvk -n __fish_use_subcommand -s h -l help -d 'show help and exit'
complete -c clinvk -n __fish_use_subcommand -l version -d 'show the version and exit'

complete -c clinvk -n '__fish_seen_subcommand_from version' -s h -l help -d 'show help and exit'

complete -c clinvk -n '__fish_seen_subcommand_from doctor' -s h -l help -d 'show help and exit'
complete -c clinvk -n '__fish_seen_subcommand_from doctor' -l json -d 'print one JSON object'

complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s h -l help -d 'show help and exit'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s f -l file -rF -d 'read tasks from a file'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s j -l max-parallel -x -d 'run at most so many tasks at once'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l fail-fast -d 'stop at the first failure'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l json -d 'print one JSON object at the end'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l jsonl -d 'print one JSON line per task as it ends'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s q -l quiet -d 'print the last line of the summary alone'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l output-dir -xa '(__fish_complete_directories)' -d 'keep a file per task there'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l ceiling -xa 'sandbox=read-only sandbox=workspace sandbox=full approval=always approval=auto approval=none' -d 'refuse tasks that ask for more'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l root -xa '(__fish_complete_directories)' -d 'refuse a workdir outside of it'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l allow-commands -d 'let a batch define commands'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l dry-run -d 'print command lines and start nothing'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l progress -xa 'auto always never' -d 'status line on stderr'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l color -xa 'auto always never' -d 'colored output'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s b -l backend -xa 'claude codex gemini echo' -d 'backend'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s m -l model -x -d 'model'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -s w -l workdir -xa '(__fish_complete_directories)' -d 'working directory'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l approval-mode -xa 'default auto none always' -d 'what may be done without asking'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l sandbox-mode -xa 'default read-only workspace full' -d 'what may be touched'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l system-prompt -x -d 'system prompt'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l max-turns -x -d 'most turns'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l max-tokens -x -d 'most tokens of an answer'
complete -c clinvk -n '__fish_seen_subcommand_from parallel' -l timeout -x -d 'most time for a task: 90, 90s, 15m, 2h'
