package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) completionCmd(root *cobra.Command) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands in your shell",
		Example: "  source <(lumbung completion bash)\n" +
			"  lumbung completion fish > ~/.config/fish/completions/lumbung.fish",
		ValidArgs: shells,
		Args:      takes("bash|zsh|fish"),
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.con.out, true)
			case "zsh":
				return root.GenZshCompletion(a.con.out)
			}
			return root.GenFishCompletion(a.con.out, true)
		},
	}
}

// completeWait bounds how long a TAB may take.
const completeWait = time.Second

func (a *app) complete(list func(context.Context, *client.Client) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer func() { _ = c.Close() }()
	ctx, stop := context.WithTimeout(context.Background(), completeWait)
	defer stop()
	return list(ctx, c), cobra.ShellCompDirectiveNoFileComp
}

// completeJobs offers the jobs of the node for a first argument.
func (a *app) completeJobs(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.complete(func(ctx context.Context, c *client.Client) []cobra.Completion {
		jobs, err := c.Jobs(ctx, true)
		if err != nil {
			return nil
		}
		var out []cobra.Completion
		for _, j := range jobs {
			out = append(out, cobra.CompletionWithDesc(j.ID, j.State+" "+j.Spec.Name))
		}
		return out
	})
}

// completeImages offers the images of the node, and files.
func (a *app) completeImages(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	images, how := a.complete(func(ctx context.Context, c *client.Client) []cobra.Completion {
		list, err := c.Images(ctx)
		if err != nil {
			return nil
		}
		var out []cobra.Completion
		for _, im := range list {
			if im.Name != "" {
				out = append(out, im.Name)
			}
		}
		return out
	})
	if how == cobra.ShellCompDirectiveError {
		return nil, how
	}
	return images, cobra.ShellCompDirectiveDefault
}
