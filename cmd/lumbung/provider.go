package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) providerCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "provider", Short: "Letting this machine: pause, resume, drain, price, caches"}
	state := func(use, short string, do func(*client.Client, context.Context) (client.ProviderStats, error)) *cobra.Command {
		return a.withOutput(&cobra.Command{
			Use: use, Short: short, Args: takes(),
			RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
				s, err := do(c, ctx)
				if err != nil {
					return err
				}
				return a.show(s, func(w io.Writer) { row(w, s.State, plural(s.Leases, "lease")) })
			}),
		})
	}
	cmd.AddCommand(
		state("pause", "Take no new work; what runs goes on", (*client.Client).ProviderPause),
		state("resume", "Take work again", (*client.Client).ProviderResume),
		a.drainCmd(),
		a.cachesCmd(),
		a.priceCmd(),
	)
	return cmd
}

func (a *app) drainCmd() *cobra.Command {
	var nowait bool
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Take no new work, move jobs with checkpoints elsewhere and wait for the rest",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			last, err := c.LastEvent(ctx)
			if err != nil {
				return err
			}
			s, err := c.ProviderDrain(ctx)
			if err != nil {
				return err
			}
			if !nowait && s.Leases > 0 {
				m := a.newMeter(fmt.Sprintf("draining: %s under way", plural(s.Leases, "lease")))
				s, err = drained(ctx, c, last)
				m.Done()
				if err != nil {
					return err
				}
			}
			return a.show(s, func(w io.Writer) { row(w, s.State, plural(s.Leases, "lease")) })
		}),
	}
	cmd.Flags().BoolVar(&nowait, "no-wait", false, "do not wait for what runs")
	return a.withOutput(cmd)
}

// drained waits until the provider has no lease left, looking whenever
// something happened.
func drained(ctx context.Context, c *client.Client, last uint64) (client.ProviderStats, error) {
	var s client.ProviderStats
	err := c.Events(ctx, last, func(e client.Event) error {
		if e.Type != job.EventContract && e.Type != job.EventProvider {
			return nil
		}
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if st.Provider == nil {
			return errors.New("this node is no provider any more")
		}
		if s = *st.Provider; s.Leases == 0 {
			return errOver
		}
		return nil
	})
	if errors.Is(err, errOver) {
		return s, nil
	}
	return s, err
}

func (a *app) priceCmd() *cobra.Command {
	var r client.PriceRequest
	var models []string
	cmd := &cobra.Command{
		Use:     "price [--cpu PRICE] [--gpu PRICE] [--model NAME=PRICE]",
		Short:   "Show or change what this machine costs for an hour",
		Example: "  lumbung provider price --gpu 0.40 --model rtx4090=0.55",
		Args:    takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			for _, m := range models {
				name, price, ok := strings.Cut(m, "=")
				if !ok {
					return usageErrf("--model %s: want NAME=PRICE, such as rtx4090=0.55", m)
				}
				if r.By == nil {
					r.By = map[string]string{}
				}
				r.By[name] = price
			}
			p, err := a.prices(ctx, c, r)
			if err != nil {
				return err
			}
			return a.show(p, func(w io.Writer) {
				row(w, "core", priceText(p.CPU))
				row(w, "GPU", priceText(p.GPU))
				for _, name := range slices.Sorted(maps.Keys(p.By)) {
					row(w, name, priceText(p.By[name]))
				}
			})
		}),
	}
	cmd.Flags().StringVar(&r.CPU, "cpu", "", "`price` of a core")
	cmd.Flags().StringVar(&r.GPU, "gpu", "", "`price` of a card")
	cmd.Flags().StringArrayVar(&models, "model", nil, "`NAME=PRICE` of one model; may be repeated")
	return a.withOutput(cmd)
}

func (a *app) prices(ctx context.Context, c *client.Client, r client.PriceRequest) (client.Prices, error) {
	if r.CPU != "" || r.GPU != "" || len(r.By) > 0 {
		return c.ProviderPrice(ctx, r)
	}
	st, err := c.Status(ctx)
	if err != nil {
		return client.Prices{}, err
	}
	if st.Provider == nil {
		return client.Prices{}, withRemedy(errors.New("this node is no provider"), "lumbung down, then lumbung up -d --role provider")
	}
	return st.Provider.Prices, nil
}
