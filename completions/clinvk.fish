# Completion of clinvk(1) for fish: put it into a directory of $fish_complete_path.

complete -c clinvk -f

function __clinvk_in -d 'whether the command is one of these; prompt also without its word'
    set -l words (commandline -opc)
    __fish_seen_subcommand_from $argv; or begin
        contains prompt $argv; and test (count $words) -gt 1; and string match -q -- '-*' $words[2]
    end
end

complete -c clinvk -n __fish_use_subcommand -a prompt -d 'ask one backend'
complete -c clinvk -n __fish_use_subcommand -a resume -d 'continue a session'
complete -c clinvk -n __fish_use_subcommand -a sessions -d 'list, show and delete sessions'
complete -c clinvk -n __fish_use_subcommand -a parallel -d 'run a batch of tasks'
complete -c clinvk -n __fish_use_subcommand -a chain -d 'run steps, each with the answers of those before it'
complete -c clinvk -n __fish_use_subcommand -a compare -d 'send one prompt to several backends'
complete -c clinvk -n __fish_use_subcommand -a report -d 'show what results files contain'
complete -c clinvk -n __fish_use_subcommand -a config -d 'show the configuration'
complete -c clinvk -n __fish_use_subcommand -a doctor -d 'show which backends can be used'
complete -c clinvk -n __fish_use_subcommand -a version -d 'show the version'
complete -c clinvk -n __fish_use_subcommand -s h -l help -d 'show help and exit'
complete -c clinvk -n __fish_use_subcommand -l version -d 'show the version and exit'

complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare sessions report config doctor version' -s h -l help -d 'show help and exit'

complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare report config doctor' -l config -rF -d 'the configuration file'

complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare report' -l color -xa 'auto always never' -d 'colored output'

complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l wrap -x -d 'put CMD before each command'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l progress -xa 'auto table always never' -d 'table of the running tasks, or a line'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -s m -l model -x -d 'model'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l effort -xa 'low medium high xhigh max' -d 'how much to think'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l schema -rF -d 'the JSON Schema of the answers'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l approval-mode -xa 'default auto none always' -d 'what may be done without asking'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l sandbox-mode -xa 'default read-only workspace full' -d 'what may be touched'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l literal -d 'leave @path and /word in prompts as text'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l answer-only -d 'answer as text, without tools and instructions'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l system-prompt -x -d 'system prompt'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l max-turns -x -d 'maximum number of turns'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l max-tokens -x -d 'maximum number of tokens of an answer'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l timeout -x -d 'time limit of a task: 90, 90s, 15m, 2h'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l idle-timeout -x -d 'stop a task that prints nothing for so long'
complete -c clinvk -n '__clinvk_in prompt resume parallel chain compare' -l max-output -x -d 'stop a task that prints more: 500K, 64M (default: 1G)'

complete -c clinvk -n '__clinvk_in prompt parallel chain compare' -s w -l workdir -xa '(__fish_complete_directories)' -d 'working directory'

complete -c clinvk -n '__clinvk_in parallel chain compare report' -s q -l quiet -d 'print only the totals and the distinct errors'

complete -c clinvk -n '__clinvk_in prompt parallel chain' -s b -l backend -xa 'claude codex gemini echo aider copilot llm ollama opencode qwen' -d 'backend'

complete -c clinvk -n '__clinvk_in report doctor' -l json -d 'print one JSON object'

complete -c clinvk -n '__clinvk_in parallel chain compare' -l json -d 'print one JSON object at the end'
complete -c clinvk -n '__clinvk_in parallel chain compare' -l dry-run -d 'print command lines and start nothing'
complete -c clinvk -n '__clinvk_in parallel chain compare' -l status-file -rF -d 'keep one JSON object about the run in FILE'
complete -c clinvk -n '__clinvk_in parallel chain compare' -l quiet-after -x -d 'mark tasks that print nothing for so long: 90s, 2m'
complete -c clinvk -n '__clinvk_in parallel chain compare' -l log-dir -xa '(__fish_complete_directories)' -d 'keep what the program of each task prints there'
complete -c clinvk -n '__clinvk_in parallel chain compare' -l log-max -x -d 'keep head and tail of a larger log: 500K, 64M (default: 64M)'

complete -c clinvk -n '__clinvk_in prompt resume' -s o -l output-format -xa 'text json stream-json' -d 'what is printed'
complete -c clinvk -n '__clinvk_in prompt resume' -l dry-run -d 'print the command line and start nothing'

complete -c clinvk -n '__clinvk_in parallel report' -F

complete -c clinvk -n '__clinvk_in parallel chain' -l retries -x -d 'try again up to N times'
complete -c clinvk -n '__clinvk_in parallel chain' -l retry-on -x -d 'error kinds to try again after'
complete -c clinvk -n '__clinvk_in parallel chain' -l retry-acted -d 'also tasks that may have changed something'
complete -c clinvk -n '__clinvk_in parallel chain' -l max-wait -x -d 'wait for limits at most that long'
complete -c clinvk -n '__clinvk_in parallel chain' -l ceiling -xa 'sandbox=read-only sandbox=workspace sandbox=full approval=always approval=auto approval=none' -d 'refuse tasks that ask for more'
complete -c clinvk -n '__clinvk_in parallel chain' -l root -xa '(__fish_complete_directories)' -d 'refuse a workdir outside of it'
complete -c clinvk -n '__clinvk_in parallel chain' -l check -x -d 'the task fails if this command fails'
complete -c clinvk -n '__clinvk_in parallel chain' -l check-timeout -x -d 'stop a check after so long (default: 10m)'
complete -c clinvk -n '__clinvk_in parallel chain' -l attempts -x -d 'try a task up to N times until its checks pass'
complete -c clinvk -n '__clinvk_in parallel chain' -l repair-prompt -rF -d 'read the prompt after a failed check from FILE'
complete -c clinvk -n '__clinvk_in parallel chain' -l require-change -d 'a task fails that changes nothing in its git work tree'
complete -c clinvk -n '__clinvk_in parallel chain' -l protect -x -d 'a task fails that changes such a path'
complete -c clinvk -n '__clinvk_in parallel chain' -l schema-retries -x -d 'ask again for an answer that is not as its schema'

complete -c clinvk -n '__clinvk_in prompt' -s c -l continue -d 'continue the last session of this directory and backend'
complete -c clinvk -n '__clinvk_in prompt' -l ephemeral -d 'keep no session'

complete -c clinvk -n '__clinvk_in resume' -l last -d 'continue the last session'
complete -c clinvk -n '__clinvk_in resume' -s b -l backend -xa 'claude codex gemini echo aider copilot llm ollama opencode qwen' -d 'with --last: the last of a backend'
complete -c clinvk -n '__clinvk_in resume' -l here -d 'run in the current directory'
complete -c clinvk -n '__clinvk_in resume' -a '(command -q clinvk; and clinvk sessions list --resumable -n 50 2>/dev/null | string replace -rf "^([0-9a-f]{8,}) +(.*)" "\$1\t\$2")'

complete -c clinvk -n '__clinvk_in parallel' -s f -l file -rF -d 'read tasks from a file'
complete -c clinvk -n '__clinvk_in parallel' -l prompt -x -d 'make a task of each item'
complete -c clinvk -n '__clinvk_in parallel' -l prompt-file -rF -d 'the same, with the template in a file'
complete -c clinvk -n '__clinvk_in parallel' -l items -rF -d 'read the items from a file'
complete -c clinvk -n '__clinvk_in parallel' -l csv -rF -d 'make a task of each row of a file'
complete -c clinvk -n '__clinvk_in parallel' -l tsv -rF -d 'the same, with tabs between the fields'
complete -c clinvk -n '__clinvk_in parallel' -s 0 -l null -d 'NUL bytes separate the items'
complete -c clinvk -n '__clinvk_in parallel' -l name -x -d 'the names of the tasks of items'
complete -c clinvk -n '__clinvk_in parallel' -l id -x -d 'the ids of the tasks of items'
complete -c clinvk -n '__clinvk_in parallel' -l write-to -x -d 'write each answer to a file of its own'
complete -c clinvk -n '__clinvk_in parallel' -l emit-tasks -d 'print the tasks as JSON lines and start nothing'
complete -c clinvk -n '__clinvk_in parallel' -s j -l max-parallel -x -d 'run at most so many tasks at once'
complete -c clinvk -n '__clinvk_in parallel' -l fail-fast -d 'stop at the first failure'
complete -c clinvk -n '__clinvk_in parallel' -l max-failures -x -d 'stop after N failures or N%'
complete -c clinvk -n '__clinvk_in parallel' -l matrix -x -d 'run each task with each value of a field'
complete -c clinvk -n '__clinvk_in parallel' -l repeat -x -d 'run each task N times'
complete -c clinvk -n '__clinvk_in parallel' -l canary -x -d 'run N tasks first'
complete -c clinvk -n '__clinvk_in parallel' -l shard -x -d 'run every N-th task, from task K on'
complete -c clinvk -n '__clinvk_in parallel' -l max-cost -x -d 'spend at most USD'
complete -c clinvk -n '__clinvk_in parallel' -l allow-unknown-cost -d 'also run backends that state no cost'
complete -c clinvk -n '__clinvk_in parallel' -l limit -x -d 'BACKEND=N: so many tasks at once'
complete -c clinvk -n '__clinvk_in parallel' -l one-per-workdir -d 'one task at a time in a directory'
complete -c clinvk -n '__clinvk_in parallel' -l jsonl -d 'print one JSON line per task as it ends'
complete -c clinvk -n '__clinvk_in parallel' -l output-dir -xa '(__fish_complete_directories)' -d 'keep a file per task there'
complete -c clinvk -n '__clinvk_in parallel' -l overwrite -d 'replace files of the same name; others stay'
complete -c clinvk -n '__clinvk_in parallel' -l results -rF -d 'add each result to a file, to continue from'
complete -c clinvk -n '__clinvk_in parallel' -l resume -d 'run only the tasks without a good result there'
complete -c clinvk -n '__clinvk_in parallel' -l allow-commands -d 'let a batch define commands'

complete -c clinvk -n '__clinvk_in chain' -s f -l file -rF -d 'read the chain from a file'
complete -c clinvk -n '__clinvk_in chain' -l jsonl -d 'print one JSON line per step as it ends'
complete -c clinvk -n '__clinvk_in chain' -l allow-commands -d 'let a chain define commands'

complete -c clinvk -n '__clinvk_in compare' -l backends -xa 'claude codex gemini echo aider copilot llm ollama opencode qwen' -d 'the backends to ask, with commas between'
complete -c clinvk -n '__clinvk_in compare' -l all-backends -d 'ask all that are installed'
complete -c clinvk -n '__clinvk_in compare' -l sequential -d 'ask one after the other'
complete -c clinvk -n '__clinvk_in compare' -l jsonl -d 'print one JSON line per answer as it ends'

complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from list show delete clean' -a 'list show delete clean'
complete -c clinvk -n '__clinvk_in sessions' -l json -d 'print JSON'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from list show delete' -l config -rF -d 'clean: the configuration file'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from show delete clean' -s b -l backend -xa 'claude codex gemini echo aider copilot llm ollama opencode qwen' -d 'list: those of a backend'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from show delete clean' -l status -xa 'active completed error' -d 'list: those with a status'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from show delete clean' -l tag -x -d 'list: those with a tag'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from show delete clean' -l resumable -d 'list: those that can be resumed'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from show delete clean' -s n -l limit -x -d 'list: at most so many'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from list show delete' -l older-than -x -d 'clean: those not used for so long: 12h, 30d, 2w'
complete -c clinvk -n '__clinvk_in sessions' -n 'not __fish_seen_subcommand_from list show delete' -l dry-run -d 'clean: print what would be deleted'
complete -c clinvk -n '__clinvk_in sessions' -n '__fish_seen_subcommand_from show delete' -a '(command -q clinvk; and clinvk sessions list -n 50 2>/dev/null | string replace -rf "^([0-9a-f]{8,}) +(.*)" "\$1\t\$2")'

complete -c clinvk -n '__clinvk_in report' -l jsonl -d 'print the line of each task'
complete -c clinvk -n '__clinvk_in report' -l csv -rF -d 'print CSV, with these columns'
complete -c clinvk -n '__clinvk_in report' -l by -xa 'backend model label cell tags error_kind' -d 'group the totals'
complete -c clinvk -n '__clinvk_in report' -l tasks -rF -d 'name the tasks without a result'
complete -c clinvk -n '__clinvk_in report' -l fail-on -x -d 'any, flaky or N%: exit with 1'
complete -c clinvk -n '__clinvk_in report' -l junit -rF -d 'write JUnit XML to a file'
complete -c clinvk -n '__clinvk_in report' -l markdown -rF -d 'write a table in Markdown to a file'
complete -c clinvk -n '__clinvk_in report' -l with-output -d 'have prompts and answers there, too'
complete -c clinvk -n '__clinvk_in report' -l html -rF -d 'write one self-contained page to a file'
complete -c clinvk -n '__clinvk_in report' -l without-output -d 'leave prompts and answers out of the page'

complete -c clinvk -n '__clinvk_in config' -n 'not __fish_seen_subcommand_from show path' -a 'show path'
complete -c clinvk -n '__clinvk_in config' -n 'not __fish_seen_subcommand_from path' -l json -d 'show: print one JSON object'
