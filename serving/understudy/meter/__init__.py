"""The meter: what each model takes in time, memory, energy and money.

station.py      all of it put together for one replica
meter.py        every two seconds: busy seconds and joules, split and priced
traffic.py      what an engine did, counted from its own statistics
gaps.py         the gaps of a stream, as a histogram that is small and can be added up
sampler.py      one thread that asks nvml.py or host.py for reading.py's figures
attribution.py  who used the device, with what can be wrong
taken.py        what one exchange took, for the record
cost.py         money; caps.py stops the shadow where it takes too much
metrics.py      the table of metrics; publish.py fills it, exposition.py is /metrics, histogram.py its histograms
traces.py       OpenTelemetry, an extra
"""
