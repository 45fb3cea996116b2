package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// called are the words of the commands' synopses as a sentence names them.
var called = map[string]string{
	"CID":             "a CID",
	"CID[/PATH]":      "a CID",
	"CMD…":            "a command",
	"FILE.yaml":       "a job file",
	"FILE.yaml|IMAGE": "a job file or an image",
	"FILE|DIR":        "an image: a file, a folder or a name such as docker://NAME",
	"FILE|-":          "a CAR file, or - for stdin",
	"IMAGE":           "an image",
	"IMAGE…":          "an image",
	"JOB":             "a job",
	"LOCAL:REMOTE…":   "a port such as 8080:80",
	"PATH…|-":         "a file or folder, or - for stdin",
	"JOB|CID[/PATH]":  "a job or a CID",
	"PEER":            "a peer",
	"PROGRAM":         "a program",
	"bash|zsh|fish":   "a shell",
}

// takes checks a command's arguments against its synopsis, word by word, and
// says which is missing: [X] may be left away, X… may come many times, and --
// may stand between a command and what it runs. An empty argument, as a script
// makes of a variable that is not set, is a missing one.
func takes(words ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		i := 0
		for _, w := range words {
			if w == "--" {
				if i < len(args) && args[i] == w {
					i++
				}
				continue
			}
			optional := strings.HasPrefix(w, "[")
			switch {
			case i < len(args) && (optional || args[i] != ""):
				i++
			case !optional:
				return usageErrf("%s needs %s: %s", commandName(cmd), called[w], synopsis(cmd, words))
			}
			if strings.Contains(w, "…") {
				return nil
			}
		}
		if i < len(args) {
			return tooMany(cmd, words, args[i])
		}
		if i > 0 && len(cmd.ValidArgs) > 0 && !slices.Contains(cmd.ValidArgs, args[0]) {
			return usageErrf("%s does not know %q: %s", commandName(cmd), args[0], synopsis(cmd, words))
		}
		return nil
	}
}

func tooMany(cmd *cobra.Command, words []string, arg string) error {
	if len(words) == 0 {
		return usageErrf("%s takes no arguments, but got %q", commandName(cmd), arg)
	}
	return usageErrf("%s got %q too many: %s", commandName(cmd), arg, synopsis(cmd, words))
}

func synopsis(cmd *cobra.Command, words []string) string {
	return strings.Join(append([]string{cmd.CommandPath()}, words...), " ")
}

// commandName is the command's path as a user says it, without lumbung.
func commandName(cmd *cobra.Command) string {
	return strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()))
}

// helpLine is the command that shows a command's help.
func helpLine(cmd *cobra.Command) string { return cmd.CommandPath() + " --help" }

// usageArgs makes every complaint about arguments a usage error, so that it
// exits with 2 and names the command's help.
func usageArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = takes()
		if cmd.HasSubCommands() {
			check = noSuchCommand
		}
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err: err, remedy: helpLine(cmd)}
		}
		return nil
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, sub := range cmd.Commands() {
		usageArgs(sub)
	}
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %q of %s", args[0], cmd.CommandPath())
	if near := similar(cmd, args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageErrf("%s", msg)
}

// similar are the commands that a mistyped word may mean, the likeliest first:
// those it begins, and those it is one or two typing errors away from. Of a
// short word two errors leave nothing.
func similar(cmd *cobra.Command, word string) []string {
	const short = 3
	word = strings.ToLower(word)
	errs := map[string]int{}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		most := 2
		if min(len(word), len(c.Name())) <= short {
			most = 1
		}
		if n := distance(word, c.Name()); n <= most || strings.HasPrefix(c.Name(), word) {
			errs[c.Name()] = n
		}
	}
	return slices.SortedFunc(maps.Keys(errs), func(a, b string) int {
		return cmp.Or(cmp.Compare(errs[a], errs[b]), strings.Compare(a, b))
	})
}
