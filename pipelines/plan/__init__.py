"""What a cluster will do with a run, before it is rented: memory, time, bottleneck, group sizes, cost.

    architecture   HF config.json -> parameters, KV bytes, FLOPs          cluster    GPUs, nodes, links, prices
    workload       prompts, candidates, lengths of a step                 memory     bytes a device, by what takes them
    times          seconds a stage, by roofline                           weights    how new weights reach samplers
    layout         one placement judged                                   search     the fastest one
    simulate       the same, event by event (engines, scenario)           report     tables and JSON
    command        ``rondo plan``

Everything here is arithmetic on numbers that are stated: no GPU, no network, no import of an engine.
"""
