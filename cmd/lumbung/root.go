package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// The groups of commands in the help.
const (
	groupNode    = "node"
	groupJob     = "job"
	groupContent = "content"
	groupMoney   = "money"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lumbung",
		Short: "Rent and let idle GPUs, peer to peer",
		Long: "lumbung runs container jobs on other people's machines and lets yours run theirs:\n" +
			"no server in the middle, a price before you start, and your files back.\n\n" +
			"Begin with `lumbung up -d`, then `lumbung run IMAGE COMMAND`; `lumbung devnet` shows it all on one machine.",
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&a.home, "home", "", "`folder` of the node (default LUMBUNG_HOME or the XDG data folder)")
	root.AddGroup(
		&cobra.Group{ID: groupNode, Title: "The node:"},
		&cobra.Group{ID: groupJob, Title: "Jobs:"},
		&cobra.Group{ID: groupContent, Title: "Images and content:"},
		&cobra.Group{ID: groupMoney, Title: "Offering and paying:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupNode, a.upCmd(), a.downCmd(), a.statusCmd(), a.doctorCmd(), a.netcheckCmd(), a.pingCmd(), a.idCmd(), a.devnetCmd())
	add(groupJob, a.runCmd(), a.submitCmd(), a.quoteCmd(), a.psCmd(), a.inspectCmd(), a.logsCmd(), a.eventsCmd(),
		a.waitCmd(), a.stopCmd(), a.getCmd(), a.execCmd(), a.portCmd(), a.offersCmd())
	add(groupContent, a.imageCmd(), a.addCmd(), a.catCmd(), a.lsCmd(), a.pinCmd(), a.dagCmd(), a.gcCmd())
	add(groupMoney, a.providerCmd(), a.drainCmd(), a.walletCmd(), a.ledgerCmd())
	root.AddCommand(a.completionCmd(root), a.versionCmd(), a.demoCmd())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if a.format == "" && cmd.Flags().Lookup("output") != nil {
			a.format = askedForm(a.args)
		}
		return &usageError{err: err, remedy: helpLine(cmd)}
	})
	usageArgs(root)
	return root
}

// withOutput adds -o to a command.
func (a *app) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().VarP(&choice{&a.format, []string{"text", "json", "jsonl"}, "text"}, "output", "o", "`form` of the result: text, json or jsonl")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "jsonl"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// askedForm is the form that a command line asks for after the word on which
// reading it ended.
func askedForm(args []string) string {
	line := " " + strings.Join(args, " ") + " "
	for _, form := range []string{"jsonl", "json"} {
		for _, flag := range []string{"-o ", "-o", "-o=", "--output ", "--output="} {
			if strings.Contains(line, " "+flag+form+" ") {
				return form
			}
		}
	}
	return ""
}

// choice is a flag of few words.
type choice struct {
	to    *string
	words []string
	def   string
}

func (c *choice) String() string {
	if c.to == nil || *c.to == "" {
		return c.def
	}
	return *c.to
}

func (c *choice) Type() string { return "word" }

func (c *choice) Set(s string) error {
	for _, w := range c.words {
		if w == s {
			*c.to = s
			return nil
		}
	}
	return usageErrf("want one of %s", strings.Join(c.words, ", "))
}
